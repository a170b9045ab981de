"""Killed anywhere, started again: the run ends with the same bits as if nothing had happened."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcdist.metrics.jsonl import read_metrics
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_storage
from tests.runs.conftest import experiment
from tests.runs.observation import RecordSteps, ask_at_every_boundary, trained_samples
from tests.runs.processes import assert_same_state, final_state, run, start_run, write_config

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


def test_killed_while_other_processes_load_images(
    undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    overrides = ["data.num_workers=2"]
    for point in ("features:batch:6", "train:step:9"):
        assert run(config, overrides, DCDIST_FAULT=point) == [-signal.SIGKILL]
    assert run(config, overrides, DCDIST_FAULT="train:step:2:*:SIGTERM") == [75]
    assert run(config, overrides) == [0]
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


@pytest.fixture(scope="module")
def heldout_file(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The digits as a Parquet file, every fifth held out."""
    file = tmp_path_factory.mktemp("heldout") / "digits.parquet"
    images = [image.read_bytes() for image in sorted(digits_folder.rglob("*.png"))]
    splits = ["test" if number % 5 == 0 else "train" for number in range(len(images))]
    pq.write_table(pa.table({"image": images, "split": splits}), file)
    return file


def test_signals_among_held_out_images_lose_no_step_and_no_clustering(heldout_file: Path, tmp_path: Path) -> None:
    def config(name: str) -> Path:
        values = experiment(heldout_file, tmp_path / name)
        values["data"] |= {"split": "train", "heldout_split": "test"}
        values["checkpoint"]["every_num_steps"] = None
        return write_config(tmp_path / f"{name}.yaml", values)

    assert run(config("undisturbed")) == [0]
    record = RecordSteps(tmp_path)
    # Batches of features of an epoch: three of training images, one of held-out ones.
    for point in ("features:batch:4", "record:begin:1", "features:batch:4", "record:begin:1"):
        running = start_run(config("run"), environment={"DCDIST_FAULT": f"{point}:*:SIGTERM"}, prepare=record)
        assert running.wait() == [75], running.errors()
    running = start_run(config("run"), prepare=record)
    assert running.wait() == [0], running.errors()
    samples, _ = trained_samples(tmp_path)
    assert list(samples) == list(range(3 * 5)), "each step once"
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed"))
    records = read_metrics(open_storage(tmp_path / "run"))
    clusterings = [record for record in records if record["kind"] == "clustering"]
    assert [(record["epoch"], record["step"]) for record in clusterings] == [(0, 0), (1, 5), (2, 10)]
    held_out = [
        record["heldout_loss"] for record in read_metrics(open_storage(tmp_path / "run")) if record["kind"] == "epoch"
    ]
    assert len(held_out) == 3
    assert all(math.isfinite(loss) for loss in held_out)


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


def test_a_signal_during_the_summary_ends_the_run_at_once(tmp_path: Path, digits_folder: Path) -> None:
    values = experiment(digits_folder, tmp_path / "run")
    values["evaluation"] = {"summary": True, "whitening_dimensions": 8}
    config = write_config(tmp_path / "config.yaml", values)
    assert run(config, DCDIST_FAULT="score:row:2:*:SIGTERM") == [75]
    assert not (tmp_path / "run" / "evaluations").exists()
    ended = RunDirectory(str(tmp_path / "run")).read_attempt(1)["ended"]
    assert (ended["exit_code"], ended["signal"]) == (75, "SIGTERM")
    assert run(config) == [0]
    assert (tmp_path / "run" / "evaluations" / "summary-0001.json").exists()


def test_a_signal_to_a_peer_counts_as_one(config: Path) -> None:
    assert run(config, num_processes=2, DCDIST_FAULT="features:batch:1:1:SIGUSR2") == [75, 75]
    directory = RunDirectory(str(config.parent / "run"))
    ended = directory.read_attempt(1)["ended"]
    assert (ended["exit_code"], ended["signal"]) == (75, "SIGUSR2")
    assert ended["reason"] == "Preempted: SIGUSR2 asked the run to make room"
    assert directory.attempts_without_progress() == 0


def test_processes_that_do_not_meet_three_times_are_not_started_again(config: Path) -> None:
    alone = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # the other one never comes
    overrides = ["launch.join_timeout_seconds=1"]
    for expected in (75, 75, 1):
        running = start_run(config, overrides, environment=alone)
        assert running.wait() == [expected], running.errors()
    assert "3 attempts in a row ended without a new checkpoint" in running.errors()
    directory = RunDirectory(str(config.parent / "run"))
    assert [directory.read_attempt(number)["ended"]["exit_code"] for number in (1, 2, 3)] == [75, 75, 1]
    assert "did not meet" in directory.read_attempt(1)["ended"]["reason"]
    assert run(config) == [0]
