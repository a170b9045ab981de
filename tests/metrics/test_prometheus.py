"""What a Prometheus server would scrape."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dcdist.metrics.prometheus import PrometheusSink

METHODS = {"main": "deepcluster", "second": "scan"}


@pytest.fixture
def sink() -> Iterator[PrometheusSink]:
    served = PrometheusSink(0, "127.0.0.1", "digits", METHODS, "0.1.0")
    yield served
    served.close()


def record(kind: str, step: int, stage: str = "main", **values: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": stage, "epoch": 2, "step": step, "time": 1000.0 + step, **values}


def step_record(step: int, **values: Any) -> dict[str, Any]:
    figures = {"loss": 3.0, "losses": {"cluster": 3.0}, "learning_rate": 0.1}
    return record("step", step, **figures, samples_per_second=50.0, data_wait_ratio=0.25, **values)


def scrape(sink: PrometheusSink) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Name -> other labels than run, stage and method -> value."""
    assert sink.port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = tuple(item for item in sorted(sample.labels.items()) if item[0] not in ("run", "stage", "method"))
            values.setdefault(sample.name, {})[own] = sample.value
            assert sample.labels["run"] == "digits"
            assert sample.labels.get("stage", "main") == "main"
            assert {"rank", "epoch", "cluster"}.isdisjoint(sample.labels)
    return values


def test_steps_and_samples_are_counted_from_where_the_process_began(sink: PrometheusSink) -> None:
    sink.write(record("event", 0, stage="", event="start", attempt=2, repeated_steps=7))
    sink.write(record("event", 100, event="stage_begin", num_epochs=9, until_step=900, samples_per_step=64))
    sink.write(record("event", 101, event="first_step", seconds_from_start=4.5))
    sink.write(step_record(110))
    sink.write(step_record(125))
    values = scrape(sink)
    assert values["dcdist_attempt"] == {(): 2.0}
    assert values["dcdist_resume_repeated_steps"] == {(): 7.0}
    assert values["dcdist_start_to_first_step_seconds"] == {(): 4.5}
    assert values["dcdist_steps_total"] == {(): 25.0}
    assert values["dcdist_samples_total"] == {(): 25.0 * 64}
    assert values["dcdist_step"] == {(): 125.0}
    assert values["dcdist_epoch"] == {(): 2.0}
    assert values["dcdist_loss"] == {(("loss", "cluster"),): 3.0, (("loss", "total"),): 3.0}
    assert values["dcdist_learning_rate"] == {(): 0.1}
    assert values["dcdist_samples_per_second"] == {(): 50.0}
    assert values["dcdist_data_wait_ratio"] == {(): 0.25}
    assert values["dcdist_build_info"] == {(("version", "0.1.0"),): 1.0}


def test_a_clustering_by_head_and_phases(sink: PrometheusSink) -> None:
    first = {"num_clusters": 50, "num_empty_repaired": 2, "objective": 0.5, "size_entropy_ratio": 0.9}
    balance = {"imbalance_factor": 1.5, "size_max_ratio": 0.125, "iterations": 20}
    sink.write(record("clustering", 0, head=0, **first, **balance, seconds={"features": 1.5}))
    values = scrape(sink)
    head = (("head", "0"),)
    assert values["dcdist_clusters"] == {head: 50.0}
    assert values["dcdist_clusters_empty_repaired"] == {head: 2.0}
    assert values["dcdist_clustering_objective"] == {head: 0.5}
    assert values["dcdist_cluster_size_entropy_ratio"] == {head: 0.9}
    assert values["dcdist_cluster_imbalance_factor"] == {head: 1.5}
    assert values["dcdist_cluster_size_max_ratio"] == {head: 0.125}
    assert values["dcdist_phase_duration_seconds"] == {(("phase", "features"),): 1.5}
    assert "dcdist_assignment_nmi_ratio" not in values
    later = {"nmi_previous": 0.75, "changed_ratio": 0.25}
    sink.write(record("clustering", 30, head=0, **first, **balance, **later, seconds={"features": 2.5, "cluster": 0.5}))
    values = scrape(sink)
    assert values["dcdist_assignment_nmi_ratio"] == {head: 0.75}
    assert values["dcdist_assignment_changed_ratio"] == {head: 0.25}
    assert values["dcdist_phase_duration_seconds"] == {(("phase", "features"),): 2.5, (("phase", "cluster"),): 0.5}


def test_a_commit_and_an_epoch(sink: PrometheusSink) -> None:
    sink.write(record("event", 7, event="checkpoint"))
    epoch = {"loss": 2.0, "heldout_loss": 2.5, "samples_per_second": 40.0, "data_wait_ratio": 0.0, "learning_rate": 0.1}
    sink.write(record("epoch", 8, **epoch, seconds={"train": 4.0}))
    values = scrape(sink)
    assert values["dcdist_checkpoint_last_commit_timestamp_seconds"] == {(): 1007.0}
    assert values["dcdist_loss"] == {(("loss", "heldout"),): 2.5}
    assert values["dcdist_phase_duration_seconds"] == {(("phase", "train"),): 4.0}


def test_gauges_of_a_stage_that_is_over_are_gone_and_its_counts_stay(sink: PrometheusSink) -> None:
    sink.write(record("event", 0, event="stage_begin", num_epochs=1, until_step=10, samples_per_step=8))
    sink.write(step_record(10))
    sink.write(
        record("event", 10, stage="second", event="stage_begin", num_epochs=1, until_step=20, samples_per_step=4)
    )
    assert sink.port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    labels = 'method="deepcluster",run="digits",stage="main"'
    assert [line for line in text.splitlines() if labels in line and "_created" not in line] == [
        f"dcdist_samples_total{{{labels}}} 80.0",
        f"dcdist_steps_total{{{labels}}} 10.0",
    ]
    assert 'dcdist_step{method="scan",run="digits",stage="second"} 10.0' in text


def test_a_port_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with caplog.at_level(logging.WARNING):
            sink = PrometheusSink(port, "127.0.0.1", "digits", METHODS, "0.1.0")
        assert sink.port is None
        sink.write(record("event", 0, event="stage_begin", num_epochs=9, until_step=900, samples_per_step=64))
        sink.write(step_record(1))
        sink.close()
    (message,) = caplog.messages
    assert message.startswith(f"no Prometheus endpoint at 127.0.0.1:{port} (")
    assert message.endswith("the run goes on without; metrics.prometheus_port=0 takes a free port")


def test_close_frees_the_port(sink: PrometheusSink) -> None:
    port = sink.port
    assert port is not None
    sink.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_step_that_had_nothing_to_learn_from_leaves_the_loss_as_it_was(sink: PrometheusSink) -> None:
    sink.write(step_record(1))
    sink.write({**step_record(2), "loss": None, "losses": {}})
    assert scrape(sink)["dcdist_loss"][(("loss", "total"),)] == 3.0
