"""Where an attempt is and that it lives, in one small file that is written over and over.

`dcdist status` reads it from anywhere, and the next attempt learns from it how far a killed one had come.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from dcdist.metrics.jsonl import to_strict_json
from dcdist.metrics.recorder import Retried
from dcdist.storage import UPLOAD_EVERY_SECONDS, Storage

EVERY_SECONDS = 5.0
_NUM_BYTES = 1024  # one write of a fixed size: readers see the old content or the new one
_KEPT = ("stage", "epoch", "step")
_FROM_EVENTS = {"phase": ("phase",), "stage_begin": ("num_epochs", "until_step", "samples_per_step")}
_FROM_STEPS = ("loss", "samples_per_second")


class Heartbeat:
    """A sink that keeps the newest position. On a local path each step is in the file at once; behind a URL the file
    is written each minute and at commits. What fails by an OSError is tried again at the next step, beat or commit.

    {"time": when it was written, "progressed": when the run last passed a boundary or wrote a record, "stage", "phase",
    "epoch", "num_epochs", "step", "until_step", "samples_per_step", "loss", "samples_per_second"}
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self._path = path
        self._values: dict[str, Any] = {"progressed": time.time()}
        self._lock = threading.Lock()
        self._writing = Retried("the heartbeat is not written")
        self._storing = Retried("the heartbeat is not stored")
        local_path = storage.local_path(path)
        self._descriptor = None if local_path is None else os.open(local_path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="dcdist-heartbeat", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        names = _FROM_STEPS if record["kind"] == "step" else _FROM_EVENTS.get(record.get("event", ""), ())
        with self._lock:
            self._values.update({name: record[name] for name in (*_KEPT, *names)}, progressed=time.time())
            self._write_locally()

    def step_done(self, epoch: int, step: int, _seconds: float, /) -> None:
        with self._lock:
            self._values.update(epoch=epoch, step=step, progressed=time.time())
            self._write_locally()

    def progressed(self) -> None:
        """The next beat says so."""
        with self._lock:
            self._values["progressed"] = time.time()

    def sync(self) -> None:
        """Stores the position behind a URL too."""
        if self._descriptor is None:
            with self._lock:
                content = self._content()
            with self._storing:
                self._storage.write_bytes(self._path, content)

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join(timeout=10)
            self.sync()
            # While the thread waits for a server that does not answer, the number must not become another file's.
            if self._descriptor is not None and not self._thread.is_alive():
                with self._storing:
                    os.close(self._descriptor)

    def _keep_beating(self) -> None:
        while not self._closed.wait(EVERY_SECONDS if self._descriptor is not None else UPLOAD_EVERY_SECONDS):
            with self._lock:
                self._write_locally()
            if self._descriptor is not None:
                # A client of NFS would send what was written only after 30 s. The server may be slow: without the
                # lock, for which steps would wait.
                with self._storing:
                    os.fdatasync(self._descriptor)
            self.sync()

    def _write_locally(self) -> None:
        if self._descriptor is not None:
            content = self._content()
            with self._writing:
                os.pwrite(self._descriptor, content, 0)

    def _content(self) -> bytes:
        return to_strict_json({"time": time.time(), **self._values}).encode().ljust(_NUM_BYTES - 1) + b"\n"


def read_heartbeat(storage: Storage, path: str) -> dict[str, Any]:
    """The newest position that is stored; empty where there is none."""
    try:
        content = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
