"""The points at which tests kill: the right process, at the right passing, by the right signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal
from dcdist.faults import fault_point
signal.signal(signal.SIGUSR2, lambda *_: print("handler", flush=True))
for step in range(4):
    fault_point("train:step")
    fault_point("train:step:end")
    print(step, flush=True)
"""


def run(fault: str | None, rank: str | None = None) -> tuple[int, list[str]]:
    environment = {name: value for name, value in os.environ.items() if name not in ("DCDIST_FAULT", "RANK")}
    if fault is not None:
        environment["DCDIST_FAULT"] = fault
    if rank is not None:
        environment["RANK"] = rank
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize(
    ("fault", "rank", "printed"),
    [
        ("train:step:1", None, []),
        ("train:step:3", "5", ["0", "1"]),
        ("train:step:end:2:*", "5", ["0"]),
        ("train:step:2:1", "1", ["0"]),
        ("train:step:2:0:SIGKILL", None, ["0"]),
    ],
)
def test_kills_at_the_count_th_passing(fault: str, rank: str | None, printed: list[str]) -> None:
    assert run(fault, rank) == (-signal.SIGKILL, printed)


@pytest.mark.parametrize(
    ("fault", "rank"), [(None, None), ("train:step:5", None), ("other:1", None), ("train:step:1:1", "0")]
)
def test_does_nothing_elsewhere(fault: str | None, rank: str | None) -> None:
    assert run(fault, rank) == (0, ["0", "1", "2", "3"])


def test_sends_the_named_signal_once() -> None:
    assert run("train:step:3:*:SIGUSR2") == (0, ["0", "1", "handler", "2", "3"])
    assert run("train:step:3:*:SIGTERM") == (-signal.SIGTERM, ["0", "1"])


@pytest.mark.parametrize("fault", ["", "train", "train:0", "train:x", "train:1:0:SIGNONE", "train:1:a", "train:1:0:9"])
def test_refuses_what_it_does_not_understand(fault: str) -> None:
    assert run(fault) == (1, [])
