"""What a stage records of its steps: sums over steps and microbatches, speeds of training alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.engine.collapse import CollapseWatch
from dcdist.engine.journal import Journal
from dcdist.engine.state import Progress
from dcdist.engine.training_step import StepSums
from dcdist.errors import RunError
from dcdist.metrics.recorder import Recorder


class Kept:
    """A sink that keeps what is written."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class Clock:
    """time.perf_counter, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def journal(kept: Kept, every_num_steps: int = 2, stop_at_collapse: bool = False) -> tuple[Journal, Progress]:
    progress = Progress()
    progress.begin_stage("main")
    watch = CollapseWatch(lambda: {"clusters": math.log(10)}, "patience")
    log = Journal(Recorder([kept]), Collectives(), progress, 60, 3, every_num_steps, watch, stop_at_collapse)
    return log, progress


def one_step(log: Journal, progress: Progress, clock: Clock, waited: float, computed: float, loss: float) -> None:
    clock.now += waited
    log.waited_for_data(waited)
    clock.now += computed
    progress.advance_step()
    log.step(StepSums({"clusters": torch.tensor(loss)}, {"confident_ratio": torch.tensor(1.5)}), 0.5)


def test_speed_is_of_steps_alone(kept: Kept, clock: Clock) -> None:
    log, progress = journal(kept)
    clock.now += 100  # features and clustering
    one_step(log, progress, clock, waited=1.0, computed=3.0, loss=6.0)
    one_step(log, progress, clock, waited=0.0, computed=4.0, loss=12.0)
    log.flush()  # as a checkpoint does
    clock.now += 50  # the checkpoint
    one_step(log, progress, clock, waited=0.0, computed=2.0, loss=3.0)
    log.flush()
    first, second = kept.records
    assert (first["step"], first["samples_per_second"], first["data_wait_ratio"]) == (2, 120 / 8, 1 / 8)
    assert (first["loss"], first["losses"]) == (3.0, {"clusters": 3.0}), "of 3 microbatches a step, 2 steps"
    assert first["figures"] == {"confident_ratio": 0.5}, "means over microbatches, no part of the loss"
    assert (second["step"], second["samples_per_second"], second["data_wait_ratio"]) == (3, 30.0, 0.0)
    assert (second["loss"], second["learning_rate"]) == (1.0, 0.5)


def test_an_epoch_weighs_every_step_alike(kept: Kept, clock: Clock) -> None:
    log, progress = journal(kept)
    with log.phase("features"):
        clock.now += 7
    with log.phase("train"):
        for loss in (3.0, 6.0, 18.0):
            one_step(log, progress, clock, waited=0.5, computed=1.5, loss=loss)
    log.epoch(heldout_loss=2.5)
    record = kept.records[-1]
    assert record["kind"] == "epoch"
    assert (record["loss"], record["heldout_loss"]) == (3.0, 2.5)
    assert record["seconds"] == {"features": 7.0, "train": 6.0}
    assert (record["samples_per_second"], record["data_wait_ratio"]) == (30.0, 0.25)
    log.epoch(heldout_loss=None)
    assert kept.records[-1]["loss"] is None, "an epoch that a resume finds trained already"
    assert "heldout_loss" not in kept.records[-1]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_steps(loss: float, kept: Kept, clock: Clock) -> None:
    log, progress = journal(kept, every_num_steps=10)
    one_step(log, progress, clock, 0.0, 1.0, 3.0)
    one_step(log, progress, clock, 0.0, 1.0, loss)
    with pytest.raises(
        RunError, match=r"the loss is not finite .* in steps 1 to 2 of the run.*lower train\.learning_rate"
    ):
        log.flush()
    assert kept.records == []


def unequal_clustering() -> Clustering:
    assignments = torch.tensor([0] * 97 + [1, 2, 3], dtype=torch.int32)
    head = HeadClustering(assignments, torch.zeros(100), torch.zeros(4, 2), 0.0, 1, 0, "rank0")
    return Clustering((head,))


def test_a_collapse_is_recorded_and_logged_with_the_remedy(
    kept: Kept, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log, progress = journal(kept)
    log.clustering(None, unequal_clustering(), None)
    assert [record["kind"] for record in kept.records] == ["event", "clustering"]
    assert kept.records[0]["event"] == "collapse"
    assert "size entropy is 0.12 of log K" in kept.records[0]["message"]
    assert "What usually helps: patience" in caplog.text
    for _ in range(2):
        for _ in range(100):
            one_step(log, progress, clock, 0.0, 1.0, 3 * math.log(10))
        log.epoch(heldout_loss=None)
    assert "stayed at 2.303" in kept.records[-1]["message"]


def test_a_collapse_ends_the_run_where_the_config_says_so(kept: Kept) -> None:
    log, _ = journal(kept, stop_at_collapse=True)
    with pytest.raises(RunError, match=r"size entropy is 0\.12 .* patience .*train\.on_collapse=stop"):
        log.clustering(None, unequal_clustering(), None)


def test_a_step_that_had_nothing_to_learn_from_dilutes_no_loss(kept: Kept, clock: Clock) -> None:
    log, progress = journal(kept, every_num_steps=10)
    one_step(log, progress, clock, 0.0, 1.0, 6.0)
    clock.now += 1.0
    progress.advance_step()
    log.step(StepSums({}, {"skipped_ratio": torch.tensor(3.0)}), 0.5)
    log.flush()
    (record,) = kept.records
    assert record["losses"] == {"clusters": 2.0}
    assert record["figures"] == {"confident_ratio": 0.5, "skipped_ratio": 1.0}
    progress.advance_step()
    log.step(StepSums({}, {"skipped_ratio": torch.tensor(3.0)}), 0.5)
    log.epoch(heldout_loss=None)
    assert (kept.records[1]["loss"], kept.records[1]["losses"]) == (None, {})
    assert kept.records[2]["loss"] == 2.0
