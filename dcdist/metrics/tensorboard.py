"""Scalars for TensorBoard, written by its own package: no torch, no TensorFlow, no thread.

All attempts share one folder and so draw one curve: each attempt tells TensorBoard to forget what earlier ones wrote
of the steps that it repeats.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from dcdist.storage import UPLOAD_EVERY_SECONDS, Storage

logger = logging.getLogger(__name__)

_COORDINATES = {"kind", "stage", "epoch", "step", "time", "head"}


class TensorBoardSink:
    """Every number of a record as the scalar STAGE/KIND/NAME; a head other than 0 has its number in the name.

    Behind a URL the file grows in a temporary file, which is uploaded as a whole after a minute and on `sync`.

    Args:
        storage: of the run.
        folder: where in it the event files lie.
        attempt: number of this attempt.
    """

    def __init__(self, storage: Storage, folder: str, attempt: int) -> None:
        # TensorBoard reads files in the order of their names, so the attempt comes before the time.
        name = f"events.out.tfevents.{attempt:010d}.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._storage = storage
        self._path = f"{folder}/{name}"
        local_folder = storage.local_path(folder)
        self._is_local = local_folder is not None
        if local_folder is not None:
            local_folder.mkdir(parents=True, exist_ok=True)
            self._file: Any = (local_folder / name).open("xb")
        else:
            self._file = tempfile.NamedTemporaryFile(prefix="dcdist-tensorboard-")  # noqa: SIM115
        self._uploaded_at = time.monotonic()
        self._writer = RecordWriter(self._file)
        self._has_begun = False
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, record: Mapping[str, Any]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record)]
        if not values:
            return
        if not self._has_begun:
            self._forget_from(record)
        self._add(Event(wall_time=record["time"], step=record["step"], summary=Summary(value=values)))
        self._file.flush()
        if time.monotonic() - self._uploaded_at >= UPLOAD_EVERY_SECONDS:
            self.sync()

    def sync(self) -> None:
        """A storage that fails for now costs a warning: the next sync uploads the same file."""
        self._uploaded_at = time.monotonic()
        if self._is_local:
            return
        self._file.flush()
        try:
            self._storage.upload(Path(self._file.name), self._path)
        except OSError as error:
            logger.warning("%s is not uploaded for now: %s", self._storage.url(self._path), error)

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _forget_from(self, first: Mapping[str, Any]) -> None:
        """TensorBoard drops what older files hold from this step on.

        Steps that are repeated are dropped from the first step record on. Any other record comes at a step that is
        done, where an earlier attempt may rightly have written too.
        """
        self._has_begun = True
        step = first["step"] if first["kind"] == "step" else first["step"] + 1
        self._add(Event(wall_time=first["time"], step=step, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of all numbers of a record, those in its mappings too; events are no curves."""
    if record["kind"] == "event":
        return
    prefix = f"{record['stage']}/{record['kind']}"
    if record.get("head"):
        prefix += f"-{record['head']}"
    for name, value in record.items():
        if name in _COORDINATES:
            continue
        entries = value.items() if isinstance(value, Mapping) else ((None, value),)
        for inner, number in entries:
            if isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number):
                yield f"{prefix}/{name}" + (f"/{inner}" if inner is not None else ""), float(number)
