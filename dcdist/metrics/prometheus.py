"""The newest figures of a run for Prometheus, served by rank 0.

Labels are run, stage, method, and head, phase or loss where a metric has several; never rank, epoch or cluster, whose
values would make new series for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

logger = logging.getLogger(__name__)

_LABELS = ("run", "stage", "method")

# name in a record -> metric, its help
_STEP_GAUGES = {
    "learning_rate": ("dcdist_learning_rate", "Learning rate of the newest step"),
    "samples_per_second": ("dcdist_samples_per_second", "Training samples a second, over all processes"),
    "data_wait_ratio": ("dcdist_data_wait_ratio", "Share of the training time spent waiting for data"),
}
_CLUSTERING_GAUGES = {
    "num_clusters": ("dcdist_clusters", "Number of clusters"),
    "num_empty_repaired": ("dcdist_clusters_empty_repaired", "Clusters refilled in the newest clustering"),
    "objective": ("dcdist_clustering_objective", "Mean squared distance of a sample to its centroid"),
    "size_entropy_ratio": ("dcdist_cluster_size_entropy_ratio", "Entropy of the cluster sizes / log K; 1 is balanced"),
    "imbalance_factor": ("dcdist_cluster_imbalance_factor", "K * sum n^2 / N^2; 1 is balanced"),
    "size_max_ratio": ("dcdist_cluster_size_max_ratio", "Share of the samples that the largest cluster holds"),
    "nmi_previous": ("dcdist_assignment_nmi_ratio", "NMI with the clustering before"),
    "changed_ratio": ("dcdist_assignment_changed_ratio", "Share of samples that left their matched cluster"),
}


class PrometheusSink:
    """Keeps the newest values and serves them at http://address:port/metrics.

    The event "stage_begin" (step, samples_per_step) says where counting begins, "checkpoint" that one was committed.
    A port that is taken is a warning: the run goes on without the endpoint, and `port` is None.

    Args:
        port: to serve at; 0 takes a free one.
        address: to bind, for example "127.0.0.1" or "0.0.0.0".
        run: name of the run, a label.
        methods: stage -> method, a label.
        version: of dcdist.
    """

    def __init__(self, port: int, address: str, run: str, methods: Mapping[str, str], version: str) -> None:
        self._run = run
        self._methods = methods
        self._stage = ""
        self._samples_per_step = 0
        self._counted_step = 0  # of the run; set where this process begins a stage
        self._registry = CollectorRegistry()
        self._samples = self._counter("dcdist_samples", "Samples trained on since this process began")
        self._steps = self._counter("dcdist_steps", "Steps trained since this process began")
        self._epoch = self._gauge("dcdist_epoch", "Epoch of the stage, from 0")
        self._current_step = self._gauge("dcdist_step", "Steps of the run that are done")
        self._loss = self._gauge("dcdist_loss", "Newest value of each loss, their sum as total", "loss")
        self._phase = self._gauge("dcdist_phase_duration_seconds", "How long each phase took last", "phase")
        self._step_gauges = {name: self._gauge(*metric) for name, metric in _STEP_GAUGES.items()}
        self._clustering_gauges = {name: self._gauge(*metric, "head") for name, metric in _CLUSTERING_GAUGES.items()}
        self._stage_gauges = (
            *(self._epoch, self._current_step, self._loss, self._phase),
            *self._step_gauges.values(),
            *self._clustering_gauges.values(),
        )
        self._last_commit = self._run_gauge(
            "dcdist_checkpoint_last_commit_timestamp_seconds", "When the newest checkpoint was committed"
        )
        self._first_step = self._run_gauge(
            "dcdist_start_to_first_step_seconds", "From the start of the job to the end of its first step"
        )
        self._repeated = self._run_gauge(
            "dcdist_resume_repeated_steps", "Training steps of the attempt before that this one does again"
        )
        self._attempt = self._run_gauge("dcdist_attempt", "Number of this start of the run, from 1")
        Gauge("dcdist_build_info", "Always 1", ("run", "version"), registry=self._registry).labels(run, version).set(1)
        self.port: int | None = None
        self._server: Any = None
        try:
            self._server, self._thread = start_http_server(port, address, self._registry)
            self.port = self._server.server_port
        except OSError as error:
            logger.warning(
                "no Prometheus endpoint at %s:%d (%s): the run goes on without; "
                "metrics.prometheus_port=0 takes a free port",
                address,
                port,
                error,
            )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, (*_LABELS, *labels), registry=self._registry)

    def _run_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("run",), registry=self._registry)

    def write(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "event":
            self._write_event(record)
        if record["stage"] not in self._methods:
            return  # before the first stage
        if record["stage"] != self._stage:
            self._begin_stage(record["stage"])
        labels = (self._run, self._stage, self._methods[self._stage])
        self._epoch.labels(*labels).set(record["epoch"])
        self._current_step.labels(*labels).set(record["step"])
        if record["kind"] == "event" and record["event"] == "stage_begin":
            self._counted_step, self._samples_per_step = record["step"], record["samples_per_step"]
        for phase, seconds in record.get("seconds", {}).items():
            self._phase.labels(*labels, phase).set(seconds)
        for loss, value in _losses(record):
            self._loss.labels(*labels, loss).set(value)
        if record["kind"] == "step":
            self._count(record["step"], labels)
            for name, gauge in self._step_gauges.items():
                gauge.labels(*labels).set(record[name])
        elif record["kind"] == "clustering":
            for name in self._clustering_gauges.keys() & record.keys():
                self._clustering_gauges[name].labels(*labels, record["head"]).set(record[name])

    def _write_event(self, record: Mapping[str, Any]) -> None:
        """What belongs to the whole run."""
        if record["event"] == "checkpoint":
            self._last_commit.labels(self._run).set(record["time"])
        elif record["event"] == "first_step":
            self._first_step.labels(self._run).set(record["seconds_from_start"])
        elif record["event"] == "start":
            self._attempt.labels(self._run).set(record["attempt"])
            self._repeated.labels(self._run).set(record["repeated_steps"])

    def _begin_stage(self, stage: str) -> None:
        """Values of a stage that is over would look like those of a run that stands still."""
        self._stage = stage
        for gauge in self._stage_gauges:
            gauge.clear()

    def _count(self, step: int, labels: tuple[str, ...]) -> None:
        new_steps = step - self._counted_step
        self._counted_step = step
        self._steps.labels(*labels).inc(new_steps)
        self._samples.labels(*labels).inc(new_steps * self._samples_per_step)

    def sync(self) -> None:
        """Nothing is stored."""

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


def _losses(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if record["kind"] == "step":
        yield from record["losses"].items()
        if record["loss"] is not None:  # steps that had nothing to learn from
            yield "total", record["loss"]
    elif record["kind"] == "epoch" and "heldout_loss" in record:
        yield "heldout", record["heldout_loss"]
