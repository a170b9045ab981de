"""What a run recorded, as far as it can be read: damaged lines and files are named and left out, never fatal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dcdist.errors import RunError, UsageError
from dcdist.metrics.heartbeat import read_heartbeat
from dcdist.metrics.jsonl import FOLDER
from dcdist.run_directory import ATTEMPTS, CONFIG, RunDirectory

Record = Mapping[str, Any]

_METRICS_FILE = re.compile(r"(\d{4,})\.jsonl")
_LATEST = 1e11  # unix seconds: what is later is no time
_LARGEST = 1e30  # what is larger is damage, and no axis can hold it
_KINDS = ("step", "clustering", "epoch", "evaluation", "event")


@dataclass(frozen=True)
class AttemptHistory:
    """One start of a run. `description` is attempts/NNNN.json, empty where that is damaged or missing."""

    number: int
    description: Record
    records: tuple[Record, ...]  # all of its own, those included that a later attempt wrote anew
    heartbeat: Record

    @property
    def ended(self) -> Record:
        """How it ended; empty where nothing is recorded (it runs, or was killed)."""
        ended = self.description.get("ended")
        return ended if isinstance(ended, dict) else {}


@dataclass(frozen=True)
class History:
    """All attempts of a run, and their records as one story: for a step written twice the later attempt holds."""

    attempts: tuple[AttemptHistory, ...]
    records: tuple[Record, ...]
    remarks: tuple[str, ...]  # sentences on what could not be read

    def of_kind(self, kind: str, stage: str | None = None) -> Iterator[Record]:
        """Records in the order of their writing."""
        return (
            record for record in self.records if record["kind"] == kind and (stage is None or record["stage"] == stage)
        )

    def stages(self) -> list[str]:
        """In the order in which they were run."""
        return list(dict.fromkeys(record["stage"] for record in self.records))


def read_history(run: RunDirectory) -> History:
    """Reads attempts and metrics.

    Raises:
        UsageError: the folder holds nothing of a run.
    """
    metrics = {int(match[1]) for match in map(_METRICS_FILE.fullmatch, run.storage.list(FOLDER)) if match}
    numbers = sorted({*run.attempt_numbers(), *metrics})
    if not numbers and not run.storage.exists(CONFIG):
        raise UsageError(
            f"{run} is no run: it has no {CONFIG}, no {ATTEMPTS}/ and no {FOLDER}/. Give the folder that run.dir named"
        )
    remarks: list[str] = []
    attempts = []
    for number in numbers:
        records = tuple(_read_records(run, number, remarks)) if number in metrics else ()
        heartbeat = read_heartbeat(run.storage, run.heartbeat_file(number))
        attempts.append(AttemptHistory(number, _read_description(run, number, remarks), records, heartbeat))
    return History(tuple(attempts), tuple(_merge(attempts)), tuple(remarks))


def number_in(record: Record, name: str) -> float | None:
    """A number that a figure can have, None for all else."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return None
    return float(value)


def numbers_in(record: Record, name: str) -> dict[str, float]:
    """The finite numbers of a mapping."""
    values = record.get(name)
    if not isinstance(values, dict):
        return {}
    found = {str(key): number_in(values, key) for key in values}
    return {key: value for key, value in found.items() if value is not None}


def _merge(attempts: list[AttemptHistory]) -> Iterator[Record]:
    """As `read_metrics` does: the latest attempt's records of a step hold; events happened, all of them are kept."""
    latest = {_coordinates(record): attempt.number for attempt in attempts for record in attempt.records}
    for attempt in attempts:
        for record in attempt.records:
            if record["kind"] == "event" or latest[_coordinates(record)] == attempt.number:
                yield record


def _coordinates(record: Record) -> tuple[Any, ...]:
    return tuple(str(record.get(name)) for name in ("kind", "stage", "epoch", "step", "head"))


def _read_records(run: RunDirectory, number: int, remarks: list[str]) -> Iterator[Record]:
    path = run.metrics_file(number)
    try:
        *lines, _ = run.storage.read_bytes(path).split(b"\n")  # a last line without its end: a kill cut it
    except OSError as error:
        remarks.append(f"{path} cannot be read ({type(error).__name__}) and is left out.")
        return
    damaged = 0
    for line in lines:
        record = _parse(line)
        if record is None:
            damaged += 1
        else:
            yield record
    if damaged:
        what = "1 line that is" if damaged == 1 else f"{damaged} lines that are"
        remarks.append(f"{path} has {what} damaged and left out.")


def _parse(line: bytes) -> Record | None:
    """None where the line is no record."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = (
        isinstance(record, dict)
        and record.get("kind") in _KINDS
        and isinstance(record.get("stage"), str)
        and all(_is_count(record.get(name)) for name in ("epoch", "step"))
        and (record["kind"] != "clustering" or _is_count(record.get("head")))
        and 0 < (number_in(record, "time") or 0) < _LATEST
    )
    return record if is_record else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < _LARGEST


def _read_description(run: RunDirectory, number: int, remarks: list[str]) -> Record:
    try:
        return run.read_attempt(number)
    except FileNotFoundError:
        remarks.append(f"{run.attempt_file(number)} is missing, though the attempt left metrics.")
    except (RunError, OSError):
        remarks.append(f"{run.attempt_file(number)} is damaged: how this attempt began and ended is not known.")
    return {}
