"""A run's figures as Prometheus metrics; docs/metrics.md says what each means.

Labels are run, stage, method, and where a metric has several values head, phase, reason, loss, figure or node; never
rank, epoch or cluster, whose values would make new series for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeHistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dcdist.metrics.prometheus_outlets import KeptOutlets, Outlet

_STAGE = ("run", "stage", "method")

# What a record of a kind holds -> its metric, and what that says. The values are gauges that a stage takes along.
_OF_STEPS = {
    "learning_rate": ("dcdist_learning_rate", "Learning rate of the newest step"),
    "gradient_norm": ("dcdist_gradient_norm", "L2 norm of the gradients of the newest step that was recorded"),
}
_OF_CLUSTERINGS = {
    "num_clusters": ("dcdist_clusters", "Number of clusters K"),
    "num_empty_repaired": ("dcdist_clusters_refilled", "Empty clusters that the newest clustering refilled"),
    "objective": ("dcdist_clustering_objective", "Mean squared distance of an image's row to its centroid"),
    "iterations": ("dcdist_clustering_iterations", "Iterations of the clusterer"),
    "size_entropy_ratio": ("dcdist_cluster_size_entropy_ratio", "Entropy of the cluster sizes / log K; 1 is balanced"),
    "imbalance_factor": ("dcdist_cluster_imbalance_factor", "K * sum n^2 / N^2; 1 is balanced"),
    "size_max_ratio": ("dcdist_cluster_size_max_ratio", "Share of the images that the largest cluster holds"),
    "nmi_previous": ("dcdist_assignment_nmi_ratio", "NMI with the clustering before"),
    "changed_ratio": ("dcdist_assignment_changed_ratio", "Share of images that left their matched cluster"),
    "nmi_targets": ("dcdist_label_nmi_ratio", "NMI with the labels, which serve this figure alone"),
}
_OF_MACHINES = {
    "processes": ("dcdist_processes", "Training processes on the machine"),
    "memory_bytes": ("dcdist_memory_bytes", "Memory of the machine's processes of this run"),
    "gpu_memory_bytes": ("dcdist_gpu_memory_bytes", "Most memory that torch has held on the machine's GPUs"),
}
_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


@dataclass(frozen=True)
class Identity:
    """What a run's metrics say of it."""

    run: str
    methods: Mapping[str, str]  # of each stage
    version: str  # of dcdist
    launcher: str
    job_name: str  # there
    checkpoint_seconds: float | None  # between checkpoints, where time decides


class PrometheusSink:
    """Keeps the newest figures, and the outlets that show them.

    Args:
        identity: of the run.
        open_outlets: makes them of the registry that has the metrics.
    """

    def __init__(self, identity: Identity, open_outlets: Callable[[CollectorRegistry], Sequence[Outlet]]) -> None:
        self._identity = identity
        # They are a series more for each counter, which nothing asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._stage = ""
        self._samples_per_step = 0
        self._first_step = 0  # of the stage, among the run's steps
        self._awaits_last_look = False
        self._of_run()
        self._of_stage()
        self._outlets = KeptOutlets(open_outlets(self._registry))

    def _of_run(self) -> None:
        identity = self._identity
        self._gauge("dcdist_build_info", "Always 1", ("run", "version")).labels(identity.run, identity.version).set(1)
        info = self._gauge("dcdist_job_info", "Always 1; who started this attempt", ("run", "launcher", "job_name"))
        info.labels(identity.run, identity.launcher, identity.job_name).set(1)
        self._finished = self._run_gauge("dcdist_finished", "1 once the run is done or was stopped on request")
        self._finished.set(0)
        self._progressed_at = self._run_gauge(
            "dcdist_progress_timestamp_seconds", "When the run last passed a step, a feature batch or an iteration"
        )
        self._progressed_at.set_to_current_time()
        # Shown from the event "start" on (stages: from the first of a stage): a 0 before it would look like a run that
        # begins anew.
        self._restarts = self._gauge("dcdist_restarts", "Starts of the run after the first", ("run",))
        self._preemptions = self._gauge(
            "dcdist_preemptions", "Earlier attempts by why they ended before the run did", ("run", "reason")
        )
        self._repeated = self._gauge(
            "dcdist_repeated_steps", "Training steps that restarts did again, in all", ("run",)
        )
        self._progress_stages = self._gauge("dcdist_progress_stages", "Stages of the run that are done", ("run",))
        self._run_gauge("dcdist_target_stages", "Stages that the run has").set(len(identity.methods))
        self._first_step_after = self._gauge(
            "dcdist_start_to_first_step_seconds", "From the start of the job to the end of its first step", ("run",)
        )
        self._checkpoints = self._counter("dcdist_checkpoints", "Checkpoints committed", ("run",)).labels(identity.run)
        self._checkpoint_seconds = self._gauge(
            "dcdist_checkpoint_duration_seconds", "How long the newest checkpoint took", ("run",)
        )
        self._committed_at = self._run_gauge(
            "dcdist_checkpoint_last_commit_timestamp_seconds",
            "When this attempt committed its newest checkpoint; before the first, when it began",
        )
        self._committed_at.set_to_current_time()
        if identity.checkpoint_seconds is not None:
            interval = self._run_gauge("dcdist_checkpoint_interval_seconds", "checkpoint.every_seconds")
            interval.set(identity.checkpoint_seconds)
        self._machines = {name: self._gauge(*metric, ("run", "node")) for name, metric in _OF_MACHINES.items()}

    def _of_stage(self) -> None:
        self._steps = self._counter("dcdist_steps", "Training steps since this process began")
        self._samples = self._counter("dcdist_samples", "Images trained on since this process began")
        self._epochs = self._counter("dcdist_epochs", "Epochs finished since this process began")
        self._clusterings = self._counter("dcdist_clusterings", "Clusterings since this process began")
        self._collapses = self._counter("dcdist_collapse_warnings", "Times that the run itself warned of a collapse")
        self._nonfinite = self._counter("dcdist_nonfinite_steps", "Steps with a loss or gradient that is not finite")
        self._waited = self._counter(
            "dcdist_data_wait_seconds",
            "Time that training steps waited for images, mean over the machine's processes",
            (*_STAGE, "node"),
        )
        self._step_seconds = Histogram(
            "dcdist_step_duration_seconds",
            "Time of a step, waiting for its images included",
            _STAGE,
            buckets=_STEP_SECONDS,
            registry=self._registry,
        )
        self._progress_steps = self._gauge("dcdist_progress_steps", "Steps of the stage that are done, over restarts")
        self._progress_samples = self._gauge("dcdist_progress_samples", "Images that these steps trained on")
        self._progress_epochs = self._gauge("dcdist_progress_epochs", "Epochs of the stage that are done")
        self._target_steps = self._gauge("dcdist_target_steps", "Steps that the stage will have")
        self._target_epochs = self._gauge("dcdist_target_epochs", "Epochs that the stage will have")
        self._phase_seconds = self._gauge(
            "dcdist_phase_duration_seconds", "How long each phase took last", (*_STAGE, "phase")
        )
        self._phase = self._gauge("dcdist_phase_info", "Always 1; the phase that the run is in", (*_STAGE, "phase"))
        self._loss = self._gauge(
            "dcdist_loss",
            "Newest mean of each loss; their sum is total, that of images kept out heldout",
            (*_STAGE, "loss"),
        )
        self._figure = self._gauge("dcdist_figure", "Newest mean of what else the method reports", (*_STAGE, "figure"))
        self._draws = self._gauge("dcdist_sampler_draws_per_image", "Images that an epoch draws / distinct ones")
        self._step_figures = {name: self._gauge(*metric) for name, metric in _OF_STEPS.items()}
        self._cluster_figures = {
            name: self._gauge(*metric, (*_STAGE, "head")) for name, metric in _OF_CLUSTERINGS.items()
        }
        self._sizes = _SizeHistogram()
        self._registry.register(self._sizes)
        self._cleared: list[Gauge | _SizeHistogram] = [
            *(self._progress_steps, self._progress_samples, self._progress_epochs, self._target_steps),
            *(self._target_epochs, self._phase_seconds, self._phase, self._loss, self._figure, self._draws),
            *self._step_figures.values(),
            *self._cluster_figures.values(),
            self._sizes,
        ]

    def _counter(self, name: str, text: str, labels: Sequence[str] = _STAGE) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = _STAGE) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _run_gauge(self, name: str, text: str) -> Gauge:
        """A gauge of the whole run, shown from the start."""
        return self._gauge(name, text, ("run",)).labels(self._identity.run)

    @property
    def _labels(self) -> tuple[str, str, str]:
        return self._identity.run, self._stage, self._identity.methods[self._stage]

    def write(self, record: Mapping[str, Any]) -> None:
        self.progressed()
        if record["kind"] == "event":
            self._write_run_event(record)
            if record["event"] == "start":
                return  # it names the first stage, wherever the run goes on
        if record["stage"] not in self._identity.methods:
            return  # before the first stage
        if record["stage"] != self._stage:
            self._begin_stage(record["stage"])
        for loss, value in _losses(record):
            self._loss.labels(*self._labels, loss).set(value)
        if record["kind"] == "event":
            self._write_stage_event(record)
        elif record["kind"] == "step":
            self._write_step(record)
        elif record["kind"] == "clustering":
            self._write_clustering(record)
        elif record["kind"] == "epoch":
            self._epochs.labels(*self._labels).inc()
            self._progress_epochs.labels(*self._labels).set(record["epoch"] + 1)

    def _write_run_event(self, record: Mapping[str, Any]) -> None:
        """What belongs to the whole run."""
        run = self._identity.run
        match record["event"]:
            case "start":
                self._restarts.labels(run).set(record["attempt"] - 1)
                self._repeated.labels(run).set(record["repeated_steps_in_all"])
                for reason, count in record["preemptions"].items():
                    self._preemptions.labels(run, reason).set(count)
            case "first_step":
                self._first_step_after.labels(run).set(record["seconds_from_start"])
            case "checkpoint":
                self._checkpoints.inc()
                self._checkpoint_seconds.labels(run).set(record["seconds"])
                self._committed_at.set(record["time"])
            case "machines":
                for name in self._machines.keys() & record.keys():
                    for node, value in record[name].items():
                        self._machines[name].labels(run, node).set(value)
            case "end":
                self._finished.set(int(record["finished"]))
                self._awaits_last_look = not record["goes_on"]

    def _write_stage_event(self, record: Mapping[str, Any]) -> None:
        labels = self._labels
        match record["event"]:
            case "stage_begin":
                self._samples_per_step = record["samples_per_step"]
                self._first_step = record["step"] - record["step_in_stage"]
                self._target_epochs.labels(*labels).set(record["num_epochs"])
                self._target_steps.labels(*labels).set(record["until_step"] - self._first_step)
                self._progress_epochs.labels(*labels).set(record["epoch"])
                self._set_step(record["step"])
                self._set_stages(done=record["is_done"])
            case "phase":
                self._phase.clear()
                self._phase.labels(*labels, record["phase"]).set(1)
            case "phase_done":
                self._phase_seconds.labels(*labels, record["phase"]).set(record["seconds"])
            case "plan":
                self._draws.labels(*labels).set(record["draws_per_image"])
            case "machines":
                for node, seconds in record["data_wait_seconds"].items():
                    self._waited.labels(*labels, node).inc(seconds)
            case "collapse":
                self._collapses.labels(*labels).inc()
            case "clusters_of_before":
                self._set_clusters(record)
            case "stage_done":
                # The final clustering may have another K and is compared with none: nothing of those before stays.
                for metric in self._cluster_figures.values():
                    metric.clear()
                self._sizes.clear()
                self._set_clusters(record)
                self._set_stages(done=True)

    def _write_step(self, record: Mapping[str, Any]) -> None:
        self._nonfinite.labels(*self._labels).inc(record["nonfinite_steps"])
        for name in self._step_figures.keys() & record.keys():
            self._step_figures[name].labels(*self._labels).set(record[name])
        for name, value in record.get("figures", {}).items():
            self._figure.labels(*self._labels, name).set(value)

    def _write_clustering(self, record: Mapping[str, Any]) -> None:
        if record["head"] == 0:
            self._clusterings.labels(*self._labels).inc()
        self._set_clusters(record)

    def _set_clusters(self, record: Mapping[str, Any]) -> None:
        head = str(record["head"])
        for name in self._cluster_figures.keys() & record.keys():
            self._cluster_figures[name].labels(*self._labels, head).set(record[name])
        self._sizes.set((*self._labels, head), record["size_histogram"])

    def _begin_stage(self, stage: str) -> None:
        """Gauges of a stage that is over would look like those of a run that stands still; counters begin at 0."""
        self._stage = stage
        for metric in self._cleared:
            metric.clear()
        counters = (self._steps, self._samples, self._epochs, self._clusterings, self._collapses, self._nonfinite)
        for counter in counters:
            counter.labels(*self._labels)

    def _set_stages(self, done: bool) -> None:
        """Those before this one, and this one where it is done."""
        before = list(self._identity.methods).index(self._stage)
        self._progress_stages.labels(self._identity.run).set(before + done)

    def _set_step(self, step: int) -> None:
        done = step - self._first_step
        self._progress_steps.labels(*self._labels).set(done)
        self._progress_samples.labels(*self._labels).set(done * self._samples_per_step)

    def step_done(self, _epoch: int, step: int, seconds: float, /) -> None:
        self._steps.labels(*self._labels).inc()
        self._samples.labels(*self._labels).inc(self._samples_per_step)
        self._step_seconds.labels(*self._labels).observe(seconds)
        self._set_step(step)
        self.progressed()

    def progressed(self) -> None:
        self._progressed_at.set_to_current_time()

    def sync(self) -> None:
        """Nothing is stored."""

    def close(self) -> None:
        """Where the run does not go on elsewhere, its last figures are shown until they have been seen."""
        self._outlets.close(self._awaits_last_look)


class _SizeHistogram(Collector):
    """Sizes of the newest clusterings. The client's own histograms add up over time; these are snapshots."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, ...], list[tuple[str, float]]] = {}

    def set(self, labels: tuple[str, ...], histogram: Mapping[str, int]) -> None:
        """Takes `size_histogram` of a clustering record, which does not add up."""
        bounds = [f"{float(bound)}".replace("inf", "+Inf") for bound in histogram]
        self._buckets[labels] = list(zip(bounds, accumulate(histogram.values()), strict=True))

    def clear(self) -> None:
        self._buckets = {}

    def collect(self) -> Iterator[Metric]:
        family = GaugeHistogramMetricFamily(
            "dcdist_cluster_size_ratio",
            "Sizes of the K clusters as multiples of the mean size N / K",
            labels=(*_STAGE, "head"),
        )
        for labels, buckets in tuple(self._buckets.items()):
            (_, num_clusters) = buckets[-1]
            family.add_metric(labels, buckets, gsum_value=num_clusters)  # ratios to their mean add up to K
        yield family


def _losses(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if record["kind"] == "step":
        yield from record["losses"].items()
        if record["loss"] is not None:  # steps that had nothing to learn from
            yield "total", record["loss"]
    elif record["kind"] == "epoch" and "heldout_loss" in record:
        yield "heldout", record["heldout_loss"]
