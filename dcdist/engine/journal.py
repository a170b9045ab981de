"""What a stage tells the recorder: losses summed over steps, times of steps and phases, balance of clusters.

A step's seconds go from the end of the step before, or the beginning of the train phase, to the end of the step. A GPU
works on after a step has returned, so a step on its own says little there: the one that ends with a record reads what
the GPU has computed, and so waits for it. Summed up they are the wall time of the train phase without its checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.engine.collapse import CollapseWatch
from dcdist.engine.machines import Machines
from dcdist.engine.state import Progress
from dcdist.engine.training_step import StepSums
from dcdist.errors import RunError
from dcdist.methods.base import EpochPlan
from dcdist.metrics.cluster_metrics import clustering_record
from dcdist.metrics.recorder import Kind, Recorder

logger = logging.getLogger(__name__)


class Journal:
    """Gathers a stage's figures over the ranks and hands them to the recorder, which has sinks on rank 0 alone.

    Args:
        recorder: where records go.
        collectives: the ranks; methods that reduce say so.
        progress: where the run is.
        samples_per_step: over all ranks.
        num_microbatches: in a step, over all ranks.
        every_num_steps: steps between two step records.
        collapse: looks at clusterings and epochs.
        machines: gathers what the run uses on each.
        stop_at_collapse: whether what it finds ends the run; else it is logged and recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        collectives: Collectives,
        progress: Progress,
        samples_per_step: int,
        num_microbatches: int,
        every_num_steps: int,
        collapse: CollapseWatch,
        machines: Machines,
        stop_at_collapse: bool = False,
    ) -> None:
        self.recorder = recorder
        self._collectives = collectives
        self._progress = progress
        self._samples_per_step = samples_per_step
        self._num_microbatches = num_microbatches
        self._every_num_steps = every_num_steps
        self._collapse = collapse
        self._machines = machines
        self._stop_at_collapse = stop_at_collapse
        self._seconds: dict[str, float] = {}
        self._window = _Window()
        self._epoch = _Window()
        self._step_began = time.perf_counter()
        self._newest_clustering: list[dict[str, Any]] = []  # on rank 0: the values recorded of each head

    def begin(self, num_epochs: int, until_step: int) -> None:
        """Records the stage's beginning, or that a resume goes on with it, and the clusters that it then has."""
        self.event(
            "stage_begin",
            num_epochs=num_epochs,
            until_step=until_step,
            step_in_stage=self._progress.step_in_stage,
            samples_per_step=self._samples_per_step,
            is_done=self._progress.stage_done,
        )
        self.event("machines", **self._machines.take())
        for values in self._newest_clustering:
            self.event("clusters_of_before", **values)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase of the epoch; steps follow its beginning."""
        self.event("phase", phase=name)
        started = time.perf_counter()
        self._step_began = self._window.began = started
        yield
        seconds = time.perf_counter() - started
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self.event("phase_done", phase=name, seconds=seconds)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, a checkpoint is written: that is no step's time. Records the steps before. Collective."""
        self.flush()  # here what waits for the device is the steps' time still
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._step_began += seconds
        self._window.began += seconds

    def waited_for_data(self, seconds: float) -> None:
        """Counts the waiting that a step begins with."""
        self._window.waited += seconds

    def records_next_step(self, is_last: bool = False) -> bool:
        """Whether the step to come ends with a record; `is_last` of its epoch: then it does."""
        return is_last or (self._progress.step + 1) % self._every_num_steps == 0

    def step(self, sums: StepSums, learning_rate: float, is_last: bool = False) -> None:
        """Counts a step, which ends here. Collective at every record.

        Args:
            sums: what it computed.
            learning_rate: of the step.
            is_last: of its epoch: recorded, so that the train phase ends when the device has done its steps.
        """
        for window, values in ((self._window.losses, sums.losses), (self._window.figures, sums.figures)):
            for name, value in values.items():
                window[name] = window.get(name, 0.0) + value
                self._window.counts[name] = self._window.counts.get(name, 0) + 1
        if sums.gradient_norm is not None:
            self._window.gradient_norm = sums.gradient_norm
        self._window.num_steps += 1
        self._window.learning_rate = learning_rate
        if is_last or self._progress.step % self._every_num_steps == 0:
            self.flush()
        began, self._step_began = self._step_began, time.perf_counter()
        seconds = self._step_began - began
        self.recorder.step_done(self._progress.stage, self._progress.epoch, self._progress.step, seconds)

    def state_dict(self) -> dict[str, Any]:
        """The means of the epoch so far, and what the watch remembers: what is said of an epoch covers all of it."""
        epoch = self._epoch
        return {
            "losses": epoch.losses,
            "figures": epoch.figures,
            "counts": epoch.counts,
            "num_steps": epoch.num_steps + epoch.num_earlier_steps,
            "learning_rate": epoch.learning_rate,
            "collapse": self._collapse.state_dict(),
            "newest_clustering": self._newest_clustering,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, after a flush."""
        self._epoch = _Window()
        self._epoch.losses, self._epoch.figures = dict(state["losses"]), dict(state["figures"])
        self._epoch.counts, self._epoch.num_earlier_steps = dict(state["counts"]), state["num_steps"]
        self._epoch.learning_rate = state["learning_rate"]
        self._collapse.load_state_dict(state["collapse"])
        self._newest_clustering = list(state["newest_clustering"])

    def flush(self) -> None:
        """Reduces and records the steps since the last record. Collective.

        Raises:
            RunError: a loss is not finite. Called before every checkpoint, so that none holds such a state.
        """
        window = self._window
        if not window.num_steps:
            return
        entries = [(values, name) for values in (window.losses, window.figures) for name in sorted(values)]
        reduced = self._collectives.all_reduce_sum(
            torch.cat(
                [
                    torch.tensor([float(values[name]) for values, name in entries], dtype=torch.float64),
                    self._machines.own(window.waited),
                ]
            )
        )
        sums, machines = torch.tensor_split(reduced, [len(entries)])
        means = [
            float(total) / self._num_microbatches / window.counts[name]
            for (_, name), total in zip(entries, sums, strict=True)
        ]
        losses, figures = (
            {name: mean for (values, name), mean in zip(entries, means, strict=True) if values is own}
            for own in (window.losses, window.figures)
        )
        waited = self._machines.add(machines)
        gradient_norm = None if window.gradient_norm is None else float(window.gradient_norm)
        is_finite = bool(np.isfinite(list(losses.values())).all())
        self._window = _Window()  # begins here, where the device has done all steps before
        seconds = max(self._window.began - window.began, 1e-9)
        self._epoch.add(losses, figures, window, waited)
        self._record(
            "step",
            loss=_total(losses),
            losses=losses,
            **({"figures": figures} if figures else {}),
            **({} if gradient_norm is None else {"gradient_norm": gradient_norm}),
            learning_rate=window.learning_rate,
            samples_per_second=window.num_steps * self._samples_per_step / seconds,
            data_wait_ratio=waited / seconds,
            nonfinite_steps=int(not is_finite or not math.isfinite(gradient_norm or 0.0)),
        )
        if not is_finite:
            last = self._progress.step
            raise RunError(
                f"the loss is not finite ({losses}) in steps {last - window.num_steps + 1} to {last} of the run. "
                "The newest checkpoint is from before; start a new run with a lower train.learning_rate, "
                "or with train.precision=fp32."
            )
        if self._machines.is_due():
            self.event("machines", **self._machines.take())

    def planned(self, plan: EpochPlan) -> None:
        """Records how often the epoch draws an image that it draws at all, of the stream that repeats most."""
        if self._collectives.is_main:
            ratios = [len(stream.sample_ids) / _num_distinct(stream.sample_ids) for stream in plan.streams.values()]
            self.event("plan", draws_per_image=max(ratios))

    def clustering(self, previous: Clustering | None, current: Clustering, labels: np.ndarray | None) -> None:
        """Records the balance of a new clustering, a head at a time."""
        self._newest_clustering = []
        for number, head in enumerate(current.heads):
            collapsing = self._collapse.clustering(number, head.assignments.numpy(), head.num_clusters)
            if collapsing:
                self._say_collapse(collapsing)
            if not self._collectives.is_main:
                continue
            before = previous.heads[number] if previous else None
            values = _balance(number, head, before, labels, self._seconds)
            values["placement"] = head.placement
            if head.num_merged:
                values["num_merged"] = head.num_merged
            self._record("clustering", **values)
            self._newest_clustering.append(values)

    def stage_done(self, final: Clustering, labels: np.ndarray | None) -> None:
        """Records the end of a stage, with the balance of its final clustering."""
        if self._collectives.is_main:
            (head,) = final.heads
            self.event("stage_done", **_balance(0, head, None, labels, {}))

    def epoch(self, heldout_loss: float | None) -> None:
        """Records the end of an epoch. Collective."""
        self.flush()
        epoch, self._epoch = self._epoch, _Window()
        seconds, self._seconds = self._seconds, {}
        train_seconds = max(seconds.get("train", 0.0), 1e-9)
        values: dict[str, Any] = {
            "loss": _total(epoch.mean(epoch.losses)),
            "samples_per_second": epoch.num_steps * self._samples_per_step / train_seconds,
            "data_wait_ratio": epoch.waited / train_seconds,
            "learning_rate": epoch.learning_rate,
            "seconds": seconds,
        }
        if heldout_loss is not None:
            values["heldout_loss"] = heldout_loss
        if epoch.figures:
            values["figures"] = epoch.mean(epoch.figures)
        self.event("machines", **self._machines.take())
        self._record("epoch", **values)
        num_steps = epoch.num_steps + epoch.num_earlier_steps
        collapsing = (
            self._collapse.epoch(epoch.mean(epoch.losses), epoch.mean(epoch.figures), num_steps) if num_steps else None
        )
        if collapsing:
            self._say_collapse(collapsing)

    def evaluation(self, **figures: float) -> None:
        """Records scores of what the run has learnt."""
        self._record("evaluation", **figures)

    def _say_collapse(self, message: str) -> None:
        """On every rank alike. Raises RunError where collapse ends the run."""
        self._record("event", event="collapse", message=message)
        if self._stop_at_collapse:
            raise RunError(f"{message} (train.on_collapse=stop)")
        if self._collectives.is_main:
            logger.warning(message)

    def event(self, name: str, **values: Any) -> None:
        """Records something that happened once."""
        self._record("event", event=name, **values)

    def _record(self, kind: Kind, **values: Any) -> None:
        self.recorder.record(
            kind, stage=self._progress.stage, epoch=self._progress.epoch, step=self._progress.step, **values
        )


def _balance(
    number: int,
    head: HeadClustering,
    before: HeadClustering | None,
    labels: np.ndarray | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What is recorded of a head's clusters; `seconds` of what came before its own phases."""
    return clustering_record(
        head=number,
        assignments=head.assignments.numpy(),
        num_clusters=head.num_clusters,
        previous_assignments=before.assignments.numpy() if before else None,
        targets=labels,
        num_empty_repaired=head.num_empty_repaired,
        objective=head.objective,
        iterations=head.num_iterations,
        seconds={**seconds, **head.seconds},
    )


def _num_distinct(sample_ids: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(sample_ids.ravel())))


def _total(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) if losses else None


class _Window:
    """Sums over some steps."""

    def __init__(self) -> None:
        self.losses: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self.counts: dict[str, int] = {}  # steps that had this loss or figure: a step may have nothing to learn from
        self.num_steps = 0
        self.num_earlier_steps = 0  # of the epoch, before this attempt; no speed is theirs
        self.waited = 0.0
        self.learning_rate = 0.0
        self.gradient_norm: torch.Tensor | None = None  # the newest that was asked for
        self.began = time.perf_counter()  # later where saving or another phase follows: these are no training

    def add(self, losses: dict[str, float], figures: dict[str, float], window: _Window, waited: float) -> None:
        """Takes over a window's means."""
        for sums, values in ((self.losses, losses), (self.figures, figures)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * window.counts[name]
                self.counts[name] = self.counts.get(name, 0) + window.counts[name]
        self.num_steps += window.num_steps
        self.waited += waited
        self.learning_rate = window.learning_rate

    def mean(self, sums: dict[str, Any]) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in sums.items()}
