"""Killed anywhere, started again: the run ends with the same bits as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from dcdist.run_directory import RunDirectory
from tests.runs.observation import ask_at_every_boundary
from tests.runs.processes import assert_same_state, final_state, run, start_run

# label:count of a point that the run passes; the first clustering, then later ones, the middle of an epoch, the end
POINTS = [
    "features:batch:1",
    "features:batch:6",
    "kmeans:iteration:3",
    "kmeans:iteration:8",
    "adopt:begin:1",
    "adopt:begin:2",
    "train:step:1",
    "train:step:10",
    "train:step:14",
    "record:begin:2",
    "checkpoint:begin:3",
    "checkpoint:data:1",
    "checkpoint:data:5",
    "checkpoint:commit:4",
    "checkpoint:committed:4",
    "checkpoint:prune:3",
    "checkpoint:data:16",
]


def test_undisturbed_runs_repeat(undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path) -> None:
    assert run(config) == [0]
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_labelled_point(
    point: str, undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    assert run(config, DCDIST_FAULT=point) == [-signal.SIGKILL]
    assert run(config) == [0]
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])


@pytest.mark.parametrize(
    ("point", "placement"),
    [
        ("kmeans:iteration:8:0", "rank0"),
        ("kmeans:iteration:8:1", "distributed"),
        ("features:batch:3:1", "rank0"),
        ("train:step:10:1", "rank0"),
        ("checkpoint:commit:4:0", "rank0"),
        ("train:step:5", "rank0"),
    ],
)
def test_one_or_all_of_two_killed(
    point: str, placement: str, undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    overrides = [f"clustering.placement={placement}"]
    codes = run(config, overrides, num_processes=2, DCDIST_FAULT=point)
    assert -signal.SIGKILL in codes
    assert set(codes) <= {-signal.SIGKILL, 75}, "survivors of a lost peer ask to be run again"
    assert run(config, overrides, num_processes=2) == [0, 0]
    assert_same_state(final_state(tmp_path / "run"), undisturbed[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize(
    "point", ["features:batch:6:1", "kmeans:iteration:8:0", "adopt:begin:2:1", "train:step:11:1", "train:step:14:0"]
)
def test_signals_lose_no_step(
    point: str, number: signal.Signals, undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    assert run(config, num_processes=2, DCDIST_FAULT=f"{point}:{number.name}") == [75, 75]
    assert run(config, num_processes=2) == [0, 0]
    assert_same_state(final_state(tmp_path / "run"), undisturbed[2])


def test_every_step_is_trained_once_when_preempted_at_each(
    undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    num_starts = 0
    while (code := run(config, DCDIST_FAULT="train:step:1:*:SIGTERM")[0]) == 75:
        num_starts += 1
        assert num_starts < 30
    assert code == 0
    assert num_starts == 21, "one start for each of 3 x 7 steps"
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])


def test_a_stop_request_saves_and_a_later_start_runs_on(
    undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    slow = start_run(config, environment={"DCDIST_FAULT": "train:step:9:*:SIGSTOP"}, prepare=ask_at_every_boundary)
    slow.wait_until_stopped()
    assert RunDirectory(str(tmp_path / "run")).request_stop() == 1
    slow.signal(signal.SIGCONT)
    assert slow.wait() == [3]
    assert "StopRequested: a stop was requested" in slow.errors()
    assert run(config) == [0]
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])
