"""What every kind of evaluation writes: which network was measured, when, on what; RUN/evaluations/KIND-NNNN.json."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from dcdist.run_directory import RunDirectory
from dcdist.stored_run import StoredRun

Report = Mapping[str, Any]  # what is written, JSON values; "kind" and "rows" always, a row has a "name"


def header(kind: str, run: StoredRun, device: torch.device) -> dict[str, Any]:
    """The part that all reports share: the kind, the run, its checkpoint and position, when and where."""
    position = {name: run.position[name] for name in ("stage", "epoch", "step", "stage_done")}
    return {
        "kind": kind,
        "run": str(run.directory),
        "checkpoint": str(run.checkpoint),
        **position,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": metadata.version("dcdist"),
        "device": device.type,
    }


def where(report: Report) -> str:
    """The run and the checkpoint, for the first line on the terminal."""
    return f"{report['run']}, {report['checkpoint']} (stage {report['stage']})"


def write(directory: RunDirectory, report: Report) -> None:
    """Into the run, under the next free number, also where another evaluation takes one at the same time."""
    content = json.dumps(report, indent=1, allow_nan=False).encode() + b"\n"
    while True:
        with contextlib.suppress(FileExistsError):
            directory.storage.create_exclusive(directory.evaluation_file(report["kind"]), content)
            return
