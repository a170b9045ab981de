"""What a stage records of its steps: sums over steps and microbatches, speeds of training alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.engine.collapse import CollapseWatch
from dcdist.engine.journal import Journal
from dcdist.engine.machines import Machines
from dcdist.engine.state import Progress
from dcdist.engine.training_step import StepSums
from dcdist.errors import RunError
from dcdist.methods.base import EpochPlan, Stream
from dcdist.metrics.recorder import Recorder


class Kept:
    """A sink that keeps what is written, of machines apart from the rest."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.machines: list[Mapping[str, Any]] = []

    def write(self, record: Mapping[str, Any]) -> None:
        (self.machines if record.get("event") == "machines" else self.records).append(record)

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
    machines = Machines(Collectives(), torch.device("cpu"), "n1")
    log = Journal(Recorder([kept]), Collectives(), progress, 60, 3, every_num_steps, watch, machines, stop_at_collapse)
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
    with log.phase("train"):
        one_step(log, progress, clock, waited=1.0, computed=3.0, loss=6.0)
        one_step(log, progress, clock, waited=0.0, computed=4.0, loss=12.0)
        with log.saving():
            clock.now += 50
        one_step(log, progress, clock, waited=0.0, computed=2.0, loss=3.0)
        log.flush()
    first, second = (record for record in kept.records if record["kind"] == "step")
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
    (record,) = kept.records
    assert record["nonfinite_steps"] == 1, "who watches learns why the run ended"


@pytest.mark.parametrize("norm", [2.5, math.inf, math.nan])
def test_a_record_has_the_newest_norm_of_the_gradients(norm: float, kept: Kept) -> None:
    log, progress = journal(kept, every_num_steps=10)
    for newest in (1.0, norm, None):  # None: a step that nobody asked of
        progress.advance_step()
        losses = {"clusters": torch.tensor(3.0)}
        log.step(StepSums(losses, {}, None if newest is None else torch.tensor(newest)), 0.5)
    log.flush()
    (record,) = kept.records
    assert record["gradient_norm"] == pytest.approx(norm, nan_ok=True)
    assert record["nonfinite_steps"] == int(not math.isfinite(norm))
    progress.advance_step()
    log.step(StepSums({}, {}), 0.5)
    log.flush()
    assert "gradient_norm" not in kept.records[1]


def test_the_norm_is_asked_of_steps_that_end_with_a_record(kept: Kept) -> None:
    log, progress = journal(kept, every_num_steps=3)
    asked = []
    for step in range(1, 8):
        if log.records_next_step():
            asked.append(step)
        progress.advance_step()
    assert asked == [3, 6]


def test_an_epoch_ends_with_what_the_machines_used(kept: Kept, clock: Clock) -> None:
    log, progress = journal(kept)
    for _ in range(3):
        one_step(log, progress, clock, waited=0.5, computed=1.5, loss=3.0)
    log.epoch(heldout_loss=None)
    one_step(log, progress, clock, waited=0.25, computed=1.5, loss=3.0)
    log.epoch(heldout_loss=None)
    first, second = kept.machines
    assert (first["processes"], first["data_wait_seconds"]) == ({"n1": 1}, {"n1": 1.5})
    assert second["data_wait_seconds"] == {"n1": 0.25}, "since the last record"
    rss = psutil.Process().memory_info().rss
    assert 0.5 * rss < first["memory_bytes"]["n1"] < 64 * rss
    assert "gpu_memory_bytes" not in first


class Timed(Kept):
    """It also keeps (epoch, step, seconds) of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int, float]] = []

    def step_done(self, epoch: int, step: int, seconds: float, /) -> None:
        self.steps.append((epoch, step, seconds))

    def progressed(self) -> None: ...


def test_every_step_is_timed_with_its_waiting_and_without_saving(clock: Clock) -> None:
    timed = Timed()
    log, progress = journal(timed)
    clock.now += 100  # clustering
    with log.phase("train"):
        one_step(log, progress, clock, waited=0.5, computed=1.5, loss=3.0)
        clock.now += 0.25  # waiting for the other ranks at a boundary
        with log.saving():
            clock.now += 50
        one_step(log, progress, clock, waited=0.0, computed=3.0, loss=3.0)
    with log.phase("train"):
        one_step(log, progress, clock, waited=0.0, computed=1.0, loss=3.0)
    assert timed.steps == [(0, 1, 2.0), (0, 2, 3.25), (0, 3, 1.0)]


class OnDevice:
    """A sum that some device still computes: reading it waits so many seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def __radd__(self, other: Any) -> OnDevice:
        return OnDevice(self._clock, self._seconds + getattr(other, "_seconds", 0.0))

    __add__ = __radd__

    def __float__(self) -> float:
        self._clock.now += self._seconds
        return 1.0


def test_what_a_device_computes_after_a_step_has_returned_is_the_steps_time(clock: Clock) -> None:
    timed = Timed()
    log, progress = journal(timed, every_num_steps=3)
    began = clock.now
    with log.phase("train"):
        for step in range(1, 9):
            progress.advance_step()
            clock.now += 0.25  # to launch it
            losses: dict[str, Any] = {"clusters": OnDevice(clock, 2.0)}
            log.step(StepSums(losses, {}), 0.5, is_last=step == 8)
            if step == 4:
                with log.saving():
                    clock.now += 50
    log.epoch(heldout_loss=None)
    seconds = [seconds for _, _, seconds in timed.steps]
    assert seconds == [0.25, 0.25, 6.25, 0.25, 2.25, 4.25, 0.25, 4.25], "a record, a checkpoint, a record, the end"
    assert sum(seconds) == clock.now - began - 50
    steps = [record for record in timed.records if record["kind"] == "step"]
    assert [step["samples_per_second"] for step in steps] == [60 * 3 / 6.75, 60 / 2.25, 60 * 2 / 4.5, 60 * 2 / 4.5]
    assert timed.records[-1]["seconds"] == {"train": 68.0}


def test_the_last_step_of_an_epoch_ends_with_a_record(kept: Kept) -> None:
    log, progress = journal(kept, every_num_steps=10)
    progress.advance_step()
    assert not log.records_next_step()
    assert log.records_next_step(is_last=True)
    log.step(StepSums({"clusters": torch.tensor(3.0)}, {}), 0.5, is_last=True)
    assert [record["kind"] for record in kept.records] == ["step"]


def test_a_phase_tells_how_long_it_took(kept: Kept, clock: Clock) -> None:
    log, _ = journal(kept)
    with log.phase("readout"):
        clock.now += 7.0
    begun, done = kept.records
    assert (begun["event"], begun["phase"]) == ("phase", "readout")
    assert (done["event"], done["phase"], done["seconds"]) == ("phase_done", "readout", 7.0)


def test_an_epoch_says_how_often_it_draws_an_image(kept: Kept) -> None:
    log, _ = journal(kept)
    repeats = Stream(np.array([7, 7, 2, 7, 2, 2]), None, ())
    once = Stream(np.array([1, 2, 3, 4, 5, 6]), None, ())
    log.planned(EpochPlan({"clusters": repeats, "jigsaw": once}, 3))
    (record,) = kept.records
    assert (record["event"], record["draws_per_image"]) == ("plan", 3.0)


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


def test_an_epoch_that_was_interrupted_is_judged_and_recorded_as_a_whole(kept: Kept, clock: Clock) -> None:
    before, progress = journal(kept)
    for loss in (3.0, 9.0, 6.0):
        one_step(before, progress, clock, 0.0, 1.0, loss)
    before.flush()  # as a checkpoint does
    state = json.loads(json.dumps(before.state_dict()))
    after, progress = journal(kept)
    after.load_state_dict(state)
    with after.phase("train"):
        one_step(after, progress, clock, 0.5, 1.5, 30.0)
    after.epoch(heldout_loss=None)
    record = kept.records[-1]
    assert record["loss"] == (1.0 + 3.0 + 2.0 + 10.0) / 4
    assert (record["samples_per_second"], record["data_wait_ratio"]) == (30.0, 0.25), "speed is of this attempt"
    assert after.state_dict()["num_steps"] == 0
    at_the_end, _ = journal(kept)
    at_the_end.load_state_dict(state)
    at_the_end.epoch(heldout_loss=None)
    assert (kept.records[-1]["loss"], kept.records[-1]["learning_rate"]) == (2.0, 0.5)


def test_a_collapse_is_found_in_the_same_epoch_whether_or_not_the_run_was_interrupted(kept: Kept, clock: Clock) -> None:
    # 2 epochs of 120 steps at chance are enough, the last 20 steps of the second one alone are not.
    log, progress = journal(kept, stop_at_collapse=True)
    for _ in range(120):
        one_step(log, progress, clock, 0.0, 1.0, 3 * math.log(10))
    log.epoch(heldout_loss=None)
    for _ in range(100):
        one_step(log, progress, clock, 0.0, 1.0, 3 * math.log(10))
    log.flush()
    resumed, progress = journal(kept, stop_at_collapse=True)
    resumed.load_state_dict(log.state_dict())
    for _ in range(20):
        one_step(resumed, progress, clock, 0.0, 1.0, 3 * math.log(10))
    with pytest.raises(RunError, match="for 2 epochs"):
        resumed.epoch(heldout_loss=None)


def test_a_resumed_stage_begins_with_the_clusters_that_it_trains_on(kept: Kept) -> None:
    before, _ = journal(kept)
    before.begin(num_epochs=3, until_step=21)
    assert [record["event"] for record in kept.records] == ["stage_begin"], "it has none yet"
    assert kept.machines[0]["data_wait_seconds"] == {"n1": 0.0}
    assert "memory_bytes" not in kept.machines[0], "nobody has looked"
    before.clustering(None, unequal_clustering(), None)
    state = json.loads(json.dumps(before.state_dict()))
    after, progress = journal(kept)
    after.load_state_dict(state)
    progress.step, progress.step_in_stage = 12, 5
    kept.records.clear()
    after.begin(num_epochs=3, until_step=21)
    begin, clusters = kept.records
    assert {name: begin[name] for name in ("num_epochs", "until_step", "step_in_stage", "samples_per_step")} == {
        "num_epochs": 3,
        "until_step": 21,
        "step_in_stage": 5,
        "samples_per_step": 60,
    }
    assert (clusters["event"], clusters["head"], clusters["size_max_ratio"]) == ("clusters_of_before", 0, 0.97)


def test_the_end_of_a_stage_is_recorded_with_the_balance_of_its_clusters(kept: Kept) -> None:
    log, _ = journal(kept)
    log.stage_done(unequal_clustering(), np.array([0] * 97 + [1] * 3))
    (record,) = kept.records
    assert (record["event"], record["num_clusters"], record["size_max_ratio"]) == ("stage_done", 4, 0.97)
    assert record["imbalance_factor"] == pytest.approx(4 * (97**2 + 3) / 100**2)
    entropy = -(0.97 * math.log(0.97) + 0.03 * math.log(0.01))
    assert record["size_entropy_ratio"] == pytest.approx(entropy / math.log(4))
    assert 0 < record["nmi_targets"] < 1
