"""Processes that the doctor's tests start, what they print, and made-up facts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dcdist.distributed.place import Place
from dcdist.doctor.machine import Facts

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
ALONE = Place(0, 1, 0, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(script: str, prepare: Callable[[], None] | None = None, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def outcome(process: subprocess.Popen[str], seconds: float = 90) -> tuple[int, str]:
    output, errors = process.communicate(timeout=seconds)
    assert "Traceback" not in errors, errors
    return process.returncode, output


def line_of(output: str, name: str) -> str:
    lines = [line for line in output.splitlines() if line[6:].startswith(f"{name} ")]
    assert len(lines) == 1, output
    return lines[0]


def leftovers(*folders: Path) -> list[str]:
    return [str(path) for folder in folders for path in folder.rglob("*dcdist-doctor*")]


def facts(rank: int, **changes: Any) -> Facts:
    values: dict[str, Any] = {
        "rank": rank,
        "host": "a",
        "boot": "1",
        "local_world_size": 2,
        "versions": {"torch": "2.14"},
        "cores": frozenset(range(4)),
        "quota": None,
        "threads": 2,
        "gpu": None,
    }
    return Facts(**{**values, **changes})


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
