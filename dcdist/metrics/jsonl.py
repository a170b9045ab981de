"""Records as lines of JSON, one file an attempt, and how they are read again.

The JSON is strict: a number that is not finite is written as null.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcdist.errors import RunError
from dcdist.storage import GrowingFile, Storage

logger = logging.getLogger(__name__)

FOLDER = "metrics"
_FILE = re.compile(r"(\d{4,})\.jsonl")


class JsonLinesSink:
    """Appends every record to a growing file of the run."""

    def __init__(self, file: GrowingFile) -> None:
        self._file = file

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.append(json.dumps(_plain(record), allow_nan=False))

    def sync(self) -> None:
        """A storage that fails for now costs a warning: the next sync stores the same lines."""
        try:
            self._file.sync()
        except OSError as error:
            logger.warning("metrics are not stored for now: %s", error)

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """What strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """All records of a run, in the order in which they were written.

    An attempt that goes on from a checkpoint repeats the steps after it. Of records that agree in kind, stage, epoch,
    step and head (of a clustering) those of the latest attempt hold; within one attempt all are kept. Events happened
    even where what they led to was lost, so all of them are kept. A last line that a kill left half written is not.

    Args:
        storage: of the run's folder.

    Raises:
        RunError: a line other than a file's last is damaged.
    """
    numbers = sorted(int(match[1]) for match in map(_FILE.fullmatch, storage.list(FOLDER)) if match)
    attempts = {number: _read_file(storage, f"{FOLDER}/{number:04d}.jsonl") for number in numbers}
    latest = {_coordinates(record): number for number, records in attempts.items() for record in records}
    return [
        record
        for number, records in attempts.items()
        for record in records
        if record["kind"] == "event" or latest[_coordinates(record)] == number
    ]


def _coordinates(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("kind", "stage", "epoch", "step", "head"))


def _read_file(storage: Storage, path: str) -> list[dict[str, Any]]:
    *lines, last = storage.read_bytes(path).split(b"\n")
    if last:
        logger.warning("%s ends in half a line, which is left out", storage.url(path))
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            record = error
        if not isinstance(record, dict):
            raise RunError(
                f"{storage.url(path)}, line {number} is not a JSON object ({record!r}): restore the file or remove it"
            )
        records.append(record)
    return records
