"""What a stage tells the recorder: losses summed over steps, times of phases, balance of clusters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dcdist.clustering.types import Clustering
from dcdist.distributed.collectives import Collectives
from dcdist.engine.state import Progress
from dcdist.errors import RunError
from dcdist.metrics.cluster_metrics import clustering_record
from dcdist.metrics.recorder import Kind, Recorder


class Journal:
    """Gathers a stage's figures over the ranks and hands them to the recorder, which has sinks on rank 0 alone.

    Args:
        recorder: where records go.
        collectives: the ranks; methods that reduce say so.
        progress: where the run is.
        samples_per_step: over all ranks.
        num_microbatches: in a step, over all ranks.
        every_num_steps: steps between two step records.
    """

    def __init__(
        self,
        recorder: Recorder,
        collectives: Collectives,
        progress: Progress,
        samples_per_step: int,
        num_microbatches: int,
        every_num_steps: int,
    ) -> None:
        self.recorder = recorder
        self._collectives = collectives
        self._progress = progress
        self._samples_per_step = samples_per_step
        self._num_microbatches = num_microbatches
        self._every_num_steps = every_num_steps
        self._seconds: dict[str, float] = {}
        self._window = _Window()
        self._epoch = _Window()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase of the epoch."""
        self.event("phase", phase=name)
        started = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def waited_for_data(self, seconds: float) -> None:
        """Counts the waiting that a step begins with."""
        self._window.begin(time.perf_counter() - seconds)
        self._window.waited += seconds

    def step(self, loss_sums: dict[str, torch.Tensor], learning_rate: float) -> None:
        """Counts a step; loss_sums are over this rank's microbatches. Collective at every record."""
        for name, value in loss_sums.items():
            self._window.losses[name] = self._window.losses.get(name, 0.0) + value
        self._window.num_steps += 1
        self._window.learning_rate = learning_rate
        self.recorder.step_done(self._progress.stage, self._progress.epoch, self._progress.step)
        if self._progress.step % self._every_num_steps == 0:
            self.flush()

    def flush(self) -> None:
        """Reduces and records the steps since the last record. Collective.

        Raises:
            RunError: a loss is not finite. Called before every checkpoint, so that none holds such a state.
        """
        window, self._window = self._window, _Window()
        if not window.num_steps:
            return
        names = sorted(window.losses)
        sums = torch.stack(
            [window.losses[name].detach().double().cpu() for name in names] + [torch.tensor(window.waited)]
        )
        sums = self._collectives.all_reduce_sum(sums.double())
        losses = {
            name: float(s) / self._num_microbatches / window.num_steps for name, s in zip(names, sums[:-1], strict=True)
        }
        waited = float(sums[-1]) / self._collectives.world_size
        if not np.isfinite(list(losses.values())).all():
            last = self._progress.step
            raise RunError(
                f"the loss is not finite ({losses}) in steps {last - window.num_steps + 1} to {last} of the run. "
                "The newest checkpoint is from before; start a new run with a lower train.learning_rate, "
                "or with train.precision=fp32."
            )
        self._epoch.add(losses, window.num_steps, waited, window.learning_rate)
        self.recorder.record(
            "step",
            stage=self._progress.stage,
            epoch=self._progress.epoch,
            step=self._progress.step,
            loss=sum(losses.values()),
            losses=losses,
            learning_rate=window.learning_rate,
            samples_per_second=window.num_steps * self._samples_per_step / max(window.seconds(), 1e-9),
            data_wait_ratio=waited / max(window.seconds(), 1e-9),
        )

    def clustering(self, previous: Clustering | None, current: Clustering, labels: np.ndarray | None) -> None:
        """Records the balance of a new clustering, a head at a time."""
        if not self._collectives.is_main:
            return
        for number, head in enumerate(current.heads):
            before = previous.heads[number] if previous else None
            values = clustering_record(
                head=number,
                assignments=head.assignments.numpy(),
                num_clusters=head.num_clusters,
                previous_assignments=before.assignments.numpy() if before else None,
                targets=labels,
                num_empty_repaired=head.num_empty_repaired,
                objective=head.objective,
                iterations=head.num_iterations,
                seconds={**self._seconds, **head.seconds},
            )
            values["placement"] = head.placement
            self._record("clustering", **values)

    def epoch(self, heldout_loss: float | None) -> None:
        """Records the end of an epoch. Collective."""
        self.flush()
        epoch, self._epoch = self._epoch, _Window()
        seconds, self._seconds = self._seconds, {}
        train_seconds = max(seconds.get("train", 0.0), 1e-9)
        values: dict[str, Any] = {
            "loss": epoch.mean_loss(),
            "samples_per_second": epoch.num_steps * self._samples_per_step / train_seconds,
            "data_wait_ratio": epoch.waited / train_seconds,
            "learning_rate": epoch.learning_rate,
            "seconds": seconds,
        }
        if heldout_loss is not None:
            values["heldout_loss"] = heldout_loss
        self._record("epoch", **values)

    def event(self, name: str, **values: Any) -> None:
        """Records something that happened once."""
        self._record("event", event=name, **values)

    def _record(self, kind: Kind, **values: Any) -> None:
        self.recorder.record(
            kind, stage=self._progress.stage, epoch=self._progress.epoch, step=self._progress.step, **values
        )


class _Window:
    """Sums over some steps."""

    def __init__(self) -> None:
        self.losses: dict[str, Any] = {}
        self.num_steps = 0
        self.waited = 0.0
        self.learning_rate = 0.0
        self._began: float | None = None

    def begin(self, now: float) -> None:
        """The first step's beginning counts: saving and clustering before it are no training."""
        if self._began is None:
            self._began = now

    def add(self, losses: dict[str, float], num_steps: int, waited: float, learning_rate: float) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value * num_steps
        self.num_steps += num_steps
        self.waited += waited
        self.learning_rate = learning_rate

    def mean_loss(self) -> float | None:
        return sum(self.losses.values()) / self.num_steps if self.num_steps else None

    def seconds(self) -> float:
        return time.perf_counter() - self._began if self._began is not None else 0.0
