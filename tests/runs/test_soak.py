"""SIGKILL at random instants, to one process or to all: the run ends with the bits of the undisturbed one."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs.processes import assert_same_state, final_state, start_run

SECONDS = 3.0  # within which a kill falls; a start takes most of the first


def one_attempt(config: Path, num_processes: int, draws: random.Random | None) -> tuple[bool, bool]:
    """Starts the run, and kills it at some time: whether a kill met a living process, whether the run ended."""
    running = start_run(config, num_processes=num_processes)
    if draws:
        rank = draws.choice([None, *range(num_processes)])
        deadline = time.monotonic() + draws.uniform(0, SECONDS)
        while time.monotonic() < deadline and all(process.is_alive() for process in running.processes):
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            running.signal(signal.SIGKILL, rank)
    codes = running.wait()
    # 1: survivors of a third lost peer in a row without a commit between, which asks a person to look.
    assert set(codes) <= {0, 75, 1, -signal.SIGKILL}, running.errors()
    if 1 in codes:
        assert "attempts in a row ended without a new checkpoint" in running.errors()
    return -signal.SIGKILL in codes, codes == [0] * num_processes


def kill_at_random(
    config: Path, run_directory: Path, num_kills: int, seed: int, undisturbed: dict[int, dict[str, Any]]
) -> int:
    """Runs, killed and started again, until so many kills were met; returns how many runs that took."""
    draws = random.Random(seed)
    num_met = num_runs = 0
    while num_met < num_kills:
        num_processes = draws.choice([1, 2])
        ended = False
        while not ended:
            met, ended = one_attempt(config, num_processes, draws if num_met < num_kills else None)
            num_met += met
        assert_same_state(final_state(run_directory), undisturbed[num_processes])
        shutil.rmtree(run_directory)
        num_runs += 1
    return num_runs


def test_three_kills(undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path) -> None:
    assert kill_at_random(config, tmp_path / "run", 3, seed=0, undisturbed=undisturbed) >= 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_kills(
    undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num_runs = kill_at_random(config, tmp_path / "run", 100, seed=1, undisturbed=undisturbed)
    with capsys.disabled():
        print(f"\n100 kills in {num_runs} runs, each ended bit-identical")
