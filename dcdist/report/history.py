"""What a run recorded, as far as it can be read: damaged lines and files are named and left out, never fatal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dcdist.errors import RunError, UsageError
from dcdist.metrics.heartbeat import read_heartbeat
from dcdist.metrics.jsonl import FOLDER, Record, latest_records, read_attempts
from dcdist.run_directory import ATTEMPTS, CONFIG, RunDirectory

_LARGEST = 1e30  # what is larger is damage, and no axis can hold it


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
    metrics, remarks = read_attempts(run.storage)
    numbers = sorted({*run.attempt_numbers(), *metrics})
    if not numbers and not run.storage.exists(CONFIG):
        raise UsageError(
            f"{run} is no run: it has no {CONFIG}, no {ATTEMPTS}/ and no {FOLDER}/. Give the folder that run.dir named"
        )
    attempts = []
    for number in numbers:
        heartbeat = read_heartbeat(run.storage, run.heartbeat_file(number))
        attempts.append(
            AttemptHistory(number, _read_description(run, number, remarks), metrics.get(number, ()), heartbeat)
        )
    return History(tuple(attempts), tuple(latest_records(metrics)), tuple(remarks))


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


def _read_description(run: RunDirectory, number: int, remarks: list[str]) -> Record:
    try:
        return run.read_attempt(number)
    except FileNotFoundError:
        remarks.append(f"{run.attempt_file(number)} is missing, though the attempt left metrics.")
    except (RunError, OSError):
        remarks.append(f"{run.attempt_file(number)} is damaged: how this attempt began and ended is not known.")
    return {}
