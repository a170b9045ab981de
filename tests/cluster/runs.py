"""The experiment that is run on clusters, and what its folder says while it runs and afterwards."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from tests.cluster.slurm import wait_for
from tests.runs.conftest import experiment
from tests.runs.processes import assert_same_state, final_state

NUM_STEPS = 280


def cluster_experiment(data: Path, run_directory: Path | str, num_steps: int = NUM_STEPS) -> dict[str, Any]:
    """That of tests/runs, long enough (some ten seconds) to be disturbed; of a kill a few steps are lost."""
    values = experiment(data, run_directory)
    values["train"]["num_epochs"] = num_steps // 7
    values["checkpoint"]["every_num_steps"] = 5
    values["launch"]["threads_per_process"] = 1
    values["metrics"]["every_num_steps"] = 1
    return values


def attempts(run: Path) -> list[dict[str, Any]]:
    """The content of every attempt's file, in order."""
    return [json.loads(file.read_text()) for file in sorted((run / "attempts").glob("*.json"))]


def reached(run: Path, attempt: int) -> int:
    """Steps of the run that were done when the attempt was seen last."""
    file = run / "attempts" / f"{attempt:04d}.heartbeat"
    try:
        return int(json.loads(file.read_text()).get("step", 0))
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def wait_for_step(run: Path, step: int, attempt: int = 1, seconds: float = 180) -> None:
    wait_for(
        lambda: reached(run, attempt) >= step,
        seconds,
        f"attempt {attempt} of {run} is at step {step}",
        lambda: f"at {reached(run, attempt)}",
    )


def step_of(checkpoint: str | None) -> int:
    return int(re.match(r"step-(\d+)", checkpoint)[1]) if checkpoint else 0  # type: ignore[index]


def assert_undisturbed_result(run: Path, undisturbed: dict[str, Any], num_steps: int = NUM_STEPS) -> None:
    """Bit for bit, and every attempt's count of repeated steps is right."""
    assert_same_state(final_state(run), undisturbed)
    all_attempts = attempts(run)
    for number, (before, after) in enumerate(itertools.pairwise(all_attempts), start=1):
        if reached(run, number):  # else it was killed before it said so
            assert after["repeated_steps"] == reached(run, number) - step_of(after["began_from"]), (before, after)
    assert reached(run, len(all_attempts)) == num_steps
