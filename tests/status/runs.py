"""Hand-written run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcdist.run_directory import RunDirectory

T0 = 1_800_000_000.0  # unix seconds, when the first attempt of every run here begins


def record(
    kind: str, step: int, time: float = T0, epoch: int = 0, stage: str = "main", **values: Any
) -> dict[str, Any]:
    return {"kind": kind, "stage": stage, "epoch": epoch, "step": step, "time": time, **values}


def event(what: str, step: int, time: float = T0, epoch: int = 0, stage: str = "main", **values: Any) -> dict[str, Any]:
    return record("event", step, time, epoch, stage, event=what, **values)


def start(attempt: int, step: int, time: float = T0, began_from: str | None = None) -> dict[str, Any]:
    return event("start", step, time, attempt=attempt, began_from=began_from, repeated_steps=0)


def stage_begin(step: int, until: int, time: float = T0, stage: str = "main", epoch: int = 0) -> dict[str, Any]:
    return event("stage_begin", step, time, epoch, stage, num_epochs=4, until_step=until, samples_per_step=64)


def step(number: int, loss: float | None, time: float = T0, epoch: int = 0, stage: str = "main") -> dict[str, Any]:
    return record("step", number, time, epoch, stage, loss=loss, samples_per_second=128.0)


def clustering(
    number: int,
    epoch: int,
    entropy: float,
    largest: float = 0.05,
    nmi: float | None = None,
    head: int = 0,
    refilled: int = 0,
    time: float = T0,
) -> dict[str, Any]:
    more = {} if nmi is None else {"nmi_previous": nmi, "changed_ratio": 1 - nmi}
    return record(
        *("clustering", number, time, epoch),
        head=head,
        num_clusters=100,
        num_empty_repaired=refilled,
        objective=0.5,
        size_entropy_ratio=entropy,
        size_max_ratio=largest,
        **more,
    )


class HandWrittenRun:
    """A run folder whose files a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = RunDirectory(str(folder))

    def begin(self, began: str = "2027-01-15T08:00:00+00:00", **description: Any) -> int:
        """An attempt, by default at T0 on this machine; its number."""
        attempt = self.directory.begin_attempt({"num_processes": 2, "launcher": {"name": "local"}, **description})
        attempt.record_beginning(None)
        self._change(attempt.number, began=began)
        return attempt.number

    def end(self, attempt: int, exit_code: int, reason: str, signal: str | None = None) -> None:
        ended = {"when": "2027-01-15T09:00:00+00:00", "exit_code": exit_code, "reason": reason, "signal": signal}
        self._change(attempt, ended={**ended, "last_commit": None})

    def beat(self, attempt: int, time: float, **values: Any) -> None:
        content = {"time": time, "progressed": time, "stage": "main", "phase": "train", "epoch": 0, **values}
        self.directory.storage.write_bytes(self.directory.heartbeat_file(attempt), json.dumps(content).encode())

    def write(self, attempt: int, *records: Mapping[str, Any], rest: str = "") -> None:
        """Appends records to the metrics of an attempt, and then `rest` without an end of line."""
        path = self.folder / self.directory.metrics_file(attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in records) + rest)

    def _change(self, attempt: int, **values: Any) -> None:
        path = self.folder / self.directory.attempt_file(attempt)
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
