"""Records as lines of JSON, one file an attempt, and how they are read again.

The JSON is strict: a number that is not finite is written as null.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dcdist.metrics.recorder import Retried
from dcdist.storage import GrowingFile, Storage

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

FOLDER = "metrics"
_FILE = re.compile(r"(\d{4,})\.jsonl")
_KINDS = ("step", "clustering", "epoch", "evaluation", "event")
_LATEST = 1e11  # unix seconds: what is later is no time
_LARGEST = 1e30  # what is larger is damage


class JsonLinesSink:
    """Appends every record to a growing file of the run.

    Where the file cannot be written for now, records wait in memory, as many as `GrowingFile` keeps.
    """

    def __init__(self, file: GrowingFile) -> None:
        self._file = file
        self._writing = Retried("metrics wait in memory")
        self._storing = Retried("metrics are not stored")

    def write(self, record: Mapping[str, Any]) -> None:
        line = to_strict_json(record)
        with self._writing:
            self._file.append(line)

    def sync(self) -> None:
        """A storage that fails for now costs a warning: the next sync stores the same lines."""
        with self._storing:
            self._file.sync()

    def close(self) -> None:
        self._file.close()


def to_strict_json(value: Any) -> str:
    """JSON on one line, with null for numbers that are not finite: NaN and Infinity are words of Python's alone."""
    return json.dumps(plain(value), allow_nan=False)


def plain(value: Any) -> Any:
    """What strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_metrics(storage: Storage) -> list[Record]:
    """All records of a run, as `latest_records` merges its attempts; what is damaged is a warning, and left out."""
    attempts, remarks = read_attempts(storage)
    for remark in remarks:
        logger.warning("%s: %s", storage.url(""), remark)
    return list(latest_records(attempts))


def read_attempts(storage: Storage) -> tuple[dict[int, tuple[Record, ...]], list[str]]:
    """The records of every attempt as they were written, and sentences on what is damaged.

    A last line without its end is what a kill leaves, and no damage.

    Args:
        storage: of the run's folder.
    """
    numbers = sorted(int(match[1]) for match in map(_FILE.fullmatch, storage.list(FOLDER)) if match)
    remarks: list[str] = []
    return {number: tuple(_read_file(storage, f"{FOLDER}/{number:04d}.jsonl", remarks)) for number in numbers}, remarks


def latest_records(attempts: Mapping[int, Sequence[Record]]) -> Iterator[Record]:
    """The records of all attempts as one story, in the order in which they were written.

    An attempt that goes on from a checkpoint repeats the steps after it. Of records that agree in kind, stage, epoch,
    step and head (of a clustering) those of the latest attempt hold; within one attempt all are kept. Events happened
    even where what they led to was lost, so all of them are kept.
    """
    latest = {_coordinates(record): number for number, records in attempts.items() for record in records}
    for number, records in attempts.items():
        for record in records:
            if record["kind"] == "event" or latest[_coordinates(record)] == number:
                yield record


def _coordinates(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("kind", "stage", "epoch", "step", "head"))


def _read_file(storage: Storage, path: str, remarks: list[str]) -> Iterator[Record]:
    try:
        *lines, _ = storage.read_bytes(path).split(b"\n")
    except OSError as error:
        remarks.append(f"{path} cannot be read ({type(error).__name__}) and is left out.")
        return
    damaged = []
    for number, line in enumerate(lines, start=1):
        record = parse_record(line)
        if record is None:
            damaged.append(str(number))
        else:
            yield record
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines, the first {damaged[0]}, are"
        remarks.append(f"{path}: {which} damaged and left out.")


def parse_record(line: bytes) -> Record | None:
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
        and (_is_count(record.get("head")) or record["kind"] != "clustering")
        and isinstance(record.get("head"), int | None)
        and _is_time(record.get("time"))
    )
    return record if is_record else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < _LARGEST


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < _LATEST
