"""What a Prometheus server would scrape, of hand-made records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dcdist.metrics.cluster_metrics import HISTOGRAM_BOUNDS
from dcdist.metrics.prometheus import Identity, PrometheusSink

METHODS = {"main": "deepcluster", "second": "scan"}


class Outlet:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def refresh(self) -> None:
        self.calls.append("refresh")

    def last_look(self) -> None:
        self.calls.append("last_look")

    def close(self) -> None:
        self.calls.append("close")


class Watched:
    """A sink with its registry and an outlet."""

    def __init__(self, checkpoint_seconds: float | None = 600.0) -> None:
        self.outlet = Outlet()
        self.registry = CollectorRegistry()
        identity = Identity("/runs/digits", METHODS, "0.1.0", "slurm", "4711", checkpoint_seconds)
        self.sink = PrometheusSink(identity, self._open)

    def _open(self, registry: CollectorRegistry) -> list[Outlet]:
        self.registry = registry
        return [self.outlet]

    def write(self, *records: dict[str, Any]) -> None:
        for one in records:
            self.sink.write(one)

    def values(self, stage: str = "main") -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Name -> other labels than run, stage and method -> value; of a stage and of the run."""
        values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                assert sample.labels["run"] == "/runs/digits"
                assert {"rank", "epoch", "cluster"}.isdisjoint(sample.labels)
                if sample.labels.get("stage", stage) != stage:
                    continue
                assert sample.labels.get("method", METHODS[stage]) == METHODS[stage]
                own = tuple(item for item in sorted(sample.labels.items()) if item[0] not in ("run", "stage", "method"))
                values.setdefault(sample.name, {})[own] = sample.value
        return values


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.sink.close()


def record(kind: str, step: int, stage: str = "main", **values: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": stage, "epoch": 2, "step": step, "time": 1000.0 + step, **values}


def step_record(step: int, **values: Any) -> dict[str, Any]:
    figures = {"loss": 3.0, "losses": {"cluster": 3.0}, "learning_rate": 0.1, "gradient_norm": 2.5}
    return record("step", step, **{**figures, "nonfinite_steps": 0, **values})


def stage_begin(
    step: int, step_in_stage: int = 0, stage: str = "main", samples_per_step: int = 64, is_done: bool = False
) -> dict[str, Any]:
    values = {"num_epochs": 9, "until_step": 900, "step_in_stage": step_in_stage, "samples_per_step": samples_per_step}
    return record("event", step, stage, event="stage_begin", is_done=is_done, **values)


def clustering(step: int, head: int = 0, **values: Any) -> dict[str, Any]:
    figures = {"num_clusters": 50, "num_empty_repaired": 2, "objective": 0.5, "iterations": 20}
    balance = {"size_entropy_ratio": 0.9, "imbalance_factor": 1.5, "size_max_ratio": 0.125}
    histogram = {f"{bound:g}": 0 for bound in HISTOGRAM_BOUNDS} | {"0": 3, "0.5": 20, "1.5": 22, "inf": 5}
    return record("clustering", step, head=head, **figures, **balance, size_histogram=histogram, **values)


def test_progress_is_absolute_and_counters_are_of_this_process(watched: Watched) -> None:
    preemptions = {"SIGTERM": 2, "killed": 1}
    start = {"attempt": 4, "began_from": "step-00000100-train.0003", "repeated_steps": 7, "repeated_steps_in_all": 19}
    watched.write(record("event", 100, event="start", preemptions=preemptions, **start), stage_begin(100, 60))
    for step in (101, 102, 103):
        watched.sink.step_done(2, step, 0.3 * (step - 100))
    watched.write(record("event", 101, event="first_step", seconds_from_start=4.5), step_record(103))
    values = watched.values()
    assert values["dcdist_restarts"] == {(): 3.0}
    assert values["dcdist_repeated_steps"] == {(): 19.0}
    assert values["dcdist_preemptions"] == {(("reason", "SIGTERM"),): 2.0, (("reason", "killed"),): 1.0}
    assert values["dcdist_start_to_first_step_seconds"] == {(): 4.5}
    assert values["dcdist_steps_total"] == {(): 3.0}
    assert values["dcdist_samples_total"] == {(): 3.0 * 64}
    assert values["dcdist_progress_steps"] == {(): 63.0}, "of the stage, which began at step 40"
    assert values["dcdist_progress_samples"] == {(): 63.0 * 64}
    assert values["dcdist_progress_epochs"] == {(): 2.0}
    assert values["dcdist_target_steps"] == {(): 860.0}
    assert values["dcdist_target_epochs"] == {(): 9.0}
    assert (values["dcdist_progress_stages"], values["dcdist_target_stages"]) == ({(): 0.0}, {(): 2.0})
    assert values["dcdist_step_duration_seconds_count"] == {(): 3.0}
    assert values["dcdist_step_duration_seconds_sum"][()] == pytest.approx(1.8)
    buckets = values["dcdist_step_duration_seconds_bucket"]
    assert [buckets[(("le", le),)] for le in ("0.25", "0.5", "1.0", "+Inf")] == [0.0, 1.0, 3.0, 3.0]
    assert values["dcdist_loss"] == {(("loss", "cluster"),): 3.0, (("loss", "total"),): 3.0}
    assert (values["dcdist_learning_rate"], values["dcdist_gradient_norm"]) == ({(): 0.1}, {(): 2.5})
    assert values["dcdist_build_info"] == {(("version", "0.1.0"),): 1.0}
    assert values["dcdist_job_info"] == {(("job_name", "4711"), ("launcher", "slurm")): 1.0}


def test_counters_are_there_before_anything_is_counted(watched: Watched) -> None:
    watched.write(stage_begin(0))
    values = watched.values()
    for name in ("steps", "samples", "epochs", "clusterings", "collapse_warnings", "nonfinite_steps", "checkpoints"):
        assert values[f"dcdist_{name}_total"] == {(): 0.0}, "else the first increase would be missed"
    assert values["dcdist_finished"] == {(): 0.0}


def test_steps_that_are_not_finite_are_counted(watched: Watched) -> None:
    watched.write(stage_begin(0), step_record(10, nonfinite_steps=2), step_record(20, nonfinite_steps=1))
    assert watched.values()["dcdist_nonfinite_steps_total"] == {(): 3.0}


def test_a_clustering_by_head(watched: Watched) -> None:
    watched.write(clustering(0, seconds={"features": 1.5}), clustering(0, head=1, seconds={"features": 1.5}))
    values = watched.values()
    heads = [(("head", "0"),), (("head", "1"),)]
    for name, value in {
        "dcdist_clusters": 50.0,
        "dcdist_clusters_refilled": 2.0,
        "dcdist_clustering_objective": 0.5,
        "dcdist_clustering_iterations": 20.0,
        "dcdist_cluster_size_entropy_ratio": 0.9,
        "dcdist_cluster_imbalance_factor": 1.5,
        "dcdist_cluster_size_max_ratio": 0.125,
    }.items():
        assert values[name] == dict.fromkeys(heads, value), name
    assert values["dcdist_clusterings_total"] == {(): 1.0}, "both heads are of one"
    assert "dcdist_phase_duration_seconds" not in values, "its own event says that"
    assert "dcdist_assignment_nmi_ratio" not in values
    later = {"nmi_previous": 0.75, "changed_ratio": 0.25, "nmi_targets": 0.4}
    watched.write(clustering(30, **later, seconds={"features": 2.5, "cluster": 0.5}))
    values = watched.values()
    assert values["dcdist_assignment_nmi_ratio"] == {heads[0]: 0.75}
    assert values["dcdist_assignment_changed_ratio"] == {heads[0]: 0.25}
    assert values["dcdist_label_nmi_ratio"] == {heads[0]: 0.4}


def test_a_phase_is_timed_when_it_is_done(watched: Watched) -> None:
    for phase, seconds in (("features", 1.5), ("readout", 4.0), ("features", 2.5)):
        watched.write(record("event", 7, event="phase_done", phase=phase, seconds=seconds))
    values = watched.values()
    assert values["dcdist_phase_duration_seconds"] == {(("phase", "features"),): 2.5, (("phase", "readout"),): 4.0}


def test_a_resumed_run_shows_the_clusters_that_it_trains_on(watched: Watched) -> None:
    values = clustering(100, nmi_previous=0.75, changed_ratio=0.25, seconds={"cluster": 1.0})
    watched.write(stage_begin(100, 60), {**values, "kind": "event", "event": "clusters_of_before"})
    shown = watched.values()
    assert shown["dcdist_cluster_size_entropy_ratio"] == {(("head", "0"),): 0.9}
    assert shown["dcdist_assignment_nmi_ratio"] == {(("head", "0"),): 0.75}
    assert shown["dcdist_cluster_size_ratio_gcount"] == {(("head", "0"),): 50.0}
    assert shown["dcdist_clusterings_total"] == {(): 0.0}, "none was made"


def test_sizes_are_a_snapshot(watched: Watched) -> None:
    watched.write(clustering(0, seconds={}), clustering(30, seconds={}))
    values = watched.values()
    buckets = {dict(labels)["le"]: value for labels, value in values["dcdist_cluster_size_ratio_bucket"].items()}
    assert (buckets["0.0"], buckets["0.25"], buckets["0.5"], buckets["1.0"]) == (3.0, 3.0, 23.0, 23.0)
    assert (buckets["1.5"], buckets["16.0"], buckets["+Inf"]) == (45.0, 45.0, 50.0), "cumulative, and not added up"
    assert values["dcdist_cluster_size_ratio_gcount"] == {(("head", "0"),): 50.0}


def test_a_commit_an_epoch_and_a_plan(watched: Watched) -> None:
    before = watched.values()
    assert before["dcdist_checkpoint_last_commit_timestamp_seconds"][()] == pytest.approx(time.time(), abs=60)
    assert before["dcdist_checkpoint_interval_seconds"] == {(): 600.0}
    watched.write(
        record("event", 7, event="checkpoint", seconds=0.25), record("event", 7, event="plan", draws_per_image=1.5)
    )
    watched.write(record("event", 7, event="phase", phase="features"), record("event", 7, event="phase", phase="train"))
    watched.write(record("event", 7, event="collapse", message="..."))
    watched.write(record("epoch", 8, loss=2.0, heldout_loss=2.5, seconds={"train": 4.0}, figures={"usage": 0.5}))
    values = watched.values()
    assert values["dcdist_checkpoint_last_commit_timestamp_seconds"] == {(): 1007.0}
    assert values["dcdist_checkpoint_duration_seconds"] == {(): 0.25}
    assert values["dcdist_checkpoints_total"] == {(): 1.0}
    assert values["dcdist_sampler_draws_per_image"] == {(): 1.5}
    assert values["dcdist_phase_info"] == {(("phase", "train"),): 1.0}
    assert values["dcdist_collapse_warnings_total"] == {(): 1.0}
    assert values["dcdist_loss"] == {(("loss", "heldout"),): 2.5}
    assert (values["dcdist_epochs_total"], values["dcdist_progress_epochs"]) == ({(): 1.0}, {(): 3.0})
    watched.write(step_record(10, figures={"usage_entropy_ratio": 0.5}))
    assert watched.values()["dcdist_figure"] == {(("figure", "usage_entropy_ratio"),): 0.5}


def test_machines_by_node(watched: Watched) -> None:
    both = {"processes": {"n1": 2, "n2": 1}, "memory_bytes": {"n1": 4e9, "n2": 2e9}}
    watched.write(record("event", 7, event="machines", data_wait_seconds={"n1": 1.5, "n2": 0.5}, **both))
    watched.write(record("event", 9, event="machines", data_wait_seconds={"n1": 1.0, "n2": 0.0}, **both))
    values = watched.values()
    n1, n2 = (("node", "n1"),), (("node", "n2"),)
    assert values["dcdist_data_wait_seconds_total"] == {n1: 2.5, n2: 0.5}
    assert values["dcdist_memory_bytes"] == {n1: 4e9, n2: 2e9}
    assert values["dcdist_processes"] == {n1: 2.0, n2: 1.0}
    assert "dcdist_gpu_memory_bytes" not in values


def test_gauges_of_a_stage_that_is_over_are_gone_and_its_counts_stay(watched: Watched) -> None:
    watched.write(stage_begin(0), clustering(0, seconds={}), step_record(10, figures={"usage": 1.0}))
    watched.sink.step_done(0, 1, 0.5)
    watched.write(stage_begin(10, stage="second", samples_per_step=4))
    main = watched.values("main")
    assert main["dcdist_steps_total"] == {(): 1.0}
    assert "dcdist_clusters" not in main
    assert "dcdist_cluster_size_ratio_bucket" not in main
    assert "dcdist_progress_steps" not in main
    assert watched.values("second")["dcdist_progress_steps"] == {(): 0.0}
    assert watched.values("second")["dcdist_progress_stages"] == {(): 1.0}


def test_a_step_that_had_nothing_to_learn_from_leaves_the_loss_as_it_was(watched: Watched) -> None:
    watched.write(step_record(1), step_record(2, loss=None, losses={}))
    assert watched.values()["dcdist_loss"][(("loss", "total"),)] == 3.0


def test_every_boundary_is_a_sign_of_progress(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 5000.0)
    watched.sink.progressed()
    assert watched.values()["dcdist_progress_timestamp_seconds"] == {(): 5000.0}


@pytest.mark.parametrize(
    ("finished", "goes_on", "calls"),
    [(True, False, ["last_look", "close"]), (False, False, ["last_look", "close"]), (False, True, ["close"])],
)
def test_the_last_figures_are_shown_where_the_run_does_not_go_on(
    finished: bool, goes_on: bool, calls: list[str]
) -> None:
    watched = Watched()
    watched.write(record("event", 9, event="end", exit_code=0, finished=finished, goes_on=goes_on))
    assert watched.values()["dcdist_finished"] == {(): float(finished)}
    watched.sink.close()
    assert watched.outlet.calls == ["refresh", *calls]
    watched.sink.close()
    assert watched.outlet.calls == ["refresh", *calls], "closing again is nothing"


def test_before_the_start_is_recorded_no_restart_is_shown() -> None:
    watched = Watched()
    assert not {"dcdist_restarts", "dcdist_repeated_steps", "dcdist_progress_stages"} & watched.values().keys(), (
        "not even 0, of a 20th attempt"
    )
    watched.sink.close()


def test_the_end_of_a_stage_shows_its_final_clusters(watched: Watched) -> None:
    watched.write(stage_begin(0, stage="second"))  # a method without clusters
    final = {**clustering(100, seconds={}), "kind": "event", "event": "stage_done", "stage": "second"}
    watched.write(final)
    values = watched.values("second")
    assert values["dcdist_clusters"] == {(("head", "0"),): 50.0}
    assert values["dcdist_clusterings_total"] == {(): 0.0}
    assert values["dcdist_progress_stages"] == {(): 2.0}


def test_nothing_of_the_clusterings_before_stays_beside_the_final_one(watched: Watched) -> None:
    for head in (0, 1):
        watched.write(clustering(0, head=head, nmi_previous=0.75, changed_ratio=0.25, seconds={}))
    final = {**clustering(100, seconds={}), "num_clusters": 2, "kind": "event", "event": "stage_done"}
    watched.write(stage_begin(100), clustering(100, nmi_previous=0.75, changed_ratio=0.25, seconds={}), final)
    values = watched.values()
    assert values["dcdist_clusters"] == {(("head", "0"),): 2.0}
    assert {"dcdist_assignment_nmi_ratio", "dcdist_assignment_changed_ratio"}.isdisjoint(values)


def test_a_resume_in_a_later_stage_shows_no_stage_before_it_is_there() -> None:
    watched = Watched()
    start = {"attempt": 2, "repeated_steps_in_all": 0, "preemptions": {"SIGTERM": 1}}
    watched.write(record("event", 100, event="start", **start))  # it names the first stage
    assert "dcdist_progress_stages" not in watched.values()
    assert "dcdist_steps_total" not in watched.values("main")
    watched.write(stage_begin(100, 60, stage="second", is_done=True))
    assert watched.values("second")["dcdist_progress_stages"] == {(): 2.0}, "all that is left is to say so"
    watched.sink.close()


def test_without_an_interval_none_is_shown() -> None:
    watched = Watched(checkpoint_seconds=None)
    assert "dcdist_checkpoint_interval_seconds" not in watched.values()
    watched.sink.close()


def test_what_is_shown_stays_small_whatever_the_number_of_clusters(watched: Watched) -> None:
    watched.write(stage_begin(0), step_record(10))
    watched.sink.step_done(0, 1, 0.5)
    for head in range(10):
        watched.write(clustering(0, head=head, nmi_previous=0.75, changed_ratio=0.25, nmi_targets=0.4, seconds={}))
    assert len(generate_latest(watched.registry)) < 64_000, "with ten heads"
