"""One optimisation step over microbatches: what it computes does not depend on how many processes share them.

A step has M microbatches; a rank takes whole ones, in turn. Batch normalisation sees one microbatch at a time;
gradients and running statistics are averages over the step's microbatches.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dcdist.distributed.collectives import Collectives
from dcdist.distributed.step_outputs import backward_of_zeros, detached, gather_outputs
from dcdist.engine.optim import Optimizer
from dcdist.methods.base import Method, Microbatch
from dcdist.models.numerics import Numerics

# The buffers are averaged here instead; torch 2.14 renamed the switch.
_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"

# num_batches_tracked, too: it counts passes, and a rank's passes are not the step's.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class _Forward(nn.Module):
    """What DDP wraps: one call runs any number of microbatches, so that a coupled loss still is one DDP iteration."""

    def __init__(self, method: Method, statistics: RunningStatistics) -> None:
        super().__init__()
        self.method = method
        self.statistics = statistics

    def forward(self, microbatches: Sequence[Microbatch], seeds: Sequence[int]) -> list[Any]:
        outputs = []
        for microbatch, seed in zip(microbatches, seeds, strict=True):
            torch.manual_seed(seed)  # dropout: the same whichever rank computes this microbatch, whatever ran before
            with self.statistics.of_one_microbatch():
                outputs.append(self.method(microbatch))
        return outputs


class RunningStatistics:
    """Batch normalisation's running statistics, averaged over the microbatches of a step.

    A layer moves its statistics at each forward pass, which would make them depend on how many microbatches a rank
    has. Here each microbatch moves a copy of those of the step's beginning; the results are averaged.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
        self._buffers = [(layer, name, layer.get_buffer(name)) for layer in layers for name in _STATISTICS]
        self._sums = [torch.zeros_like(buffer) for _, _, buffer in self._buffers]

    @contextlib.contextmanager
    def of_one_microbatch(self) -> Iterator[None]:
        # Copies, for autograd keeps what the forward pass saw: the buffers themselves may change before backward.
        copies = [buffer.clone() for _, _, buffer in self._buffers]
        self._place(copies)
        yield
        for total, copy in zip(self._sums, copies, strict=True):
            total += copy
        self._place([buffer for _, _, buffer in self._buffers])

    def _place(self, tensors: list[torch.Tensor]) -> None:
        for (layer, name, _), tensor in zip(self._buffers, tensors, strict=True):
            setattr(layer, name, tensor)

    @torch.no_grad()
    def finish_step(self, num_microbatches: int, collectives: Collectives) -> None:
        """Sets the average over the microbatches of all ranks. Collective."""
        if not self._buffers:
            return
        totals = collectives.all_reduce_sum(torch.cat([total.flatten() for total in self._sums])) / num_microbatches
        for (_, _, buffer), total, part in zip(
            self._buffers, self._sums, torch.split(totals, [total.numel() for total in self._sums]), strict=True
        ):
            buffer.copy_(part.view_as(buffer))
            total.zero_()


@dataclass
class StepSums:
    """Sums over this rank's microbatches of a step, on the device."""

    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    figures: dict[str, torch.Tensor] = field(default_factory=dict)
    gradient_norm: torch.Tensor | None = None  # L2, of the step's gradients, the same on every rank, where asked for

    def add(self, losses: dict[str, torch.Tensor], figures: dict[str, torch.Tensor], num_microbatches: int) -> None:
        """Adds means over so many microbatches."""
        for sums, values in ((self.losses, losses), (self.figures, figures)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * num_microbatches


class TrainingStep:
    """Forward, backward and update of one step, over this rank's share of its microbatches.

    Args:
        method: what is trained; its gradients are averaged over the ranks.
        optimizer: over the method's parameters.
        numerics: precision of the forward pass.
        collectives: the ranks.
        num_microbatches: M, at least one a rank.
    """

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        numerics: Numerics,
        collectives: Collectives,
        num_microbatches: int,
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self._numerics = numerics
        self._collectives = collectives
        self._num_microbatches = num_microbatches
        self._statistics = RunningStatistics(method)
        self._forward: nn.Module = _Forward(method, self._statistics)
        if collectives.world_size > 1:
            # find_unused_parameters also keeps DDP from rebuilding its buckets after the first iteration. Where a
            # gradient lies in a bucket decides in which order a ring adds it up, so a resumed run, whose first
            # iteration is another one, would end with other bits.
            switches: dict[str, Any] = {_SYNC_BUFFERS: False, "find_unused_parameters": True}
            self._forward = DistributedDataParallel(self._forward, gradient_as_bucket_view=True, **switches)

    def own_microbatches(self) -> range:
        """The numbers of this rank's microbatches in every step, of 0 .. M - 1."""
        rank, world_size = self._collectives.rank, self._collectives.world_size
        return range(self._num_microbatches * rank // world_size, self._num_microbatches * (rank + 1) // world_size)

    def __call__(
        self, microbatches: Sequence[Microbatch], seeds: Sequence[int], step_in_stage: int, measured: bool = False
    ) -> tuple[StepSums, float]:
        """Trains on this rank's microbatches of one step; returns its sums over them and the learning rate.

        `measured` asks for the norm of the gradients, which reads all of them once more.
        """
        self.method.train()
        sums = StepSums()
        kept = (self._coupled if self.method.couples_samples else self._one_by_one)(microbatches, seeds, sums)
        if measured and sums.losses:
            sums.gradient_norm = nn.utils.get_total_norm(
                parameter.grad for parameter in self.method.parameters() if parameter.grad is not None
            )
        learning_rate = self.optimizer.step(step_in_stage, skip=not sums.losses)
        self._statistics.finish_step(self._num_microbatches, self._collectives)
        with torch.no_grad():
            self.method.after_step(kept)
        return sums, learning_rate

    def _coupled(self, microbatches: Sequence[Microbatch], seeds: Sequence[int], sums: StepSums) -> Any:
        """One loss of the whole step, the same on every rank; returns what the method keeps."""
        with self._numerics.autocast():
            own = self._forward(microbatches, seeds)
        outputs = gather_outputs(own, self._collectives)
        losses = self.method.losses(outputs)
        if losses:
            _total(losses).backward()  # type: ignore[no-untyped-call]
        elif isinstance(self._forward, DistributedDataParallel):
            # It would wait for this step's gradients, also in those of another stage on the same backbone.
            backward_of_zeros(outputs)
        outputs = detached(outputs)
        sums.add(losses, self.method.figures(outputs), len(microbatches))
        return self.method.keep(outputs)

    def _one_by_one(self, microbatches: Sequence[Microbatch], seeds: Sequence[int], sums: StepSums) -> Any:
        """A loss of each microbatch, whose gradients add up; returns what the method keeps, gathered from all ranks."""
        kept = []
        for number, (microbatch, seed) in enumerate(zip(microbatches, seeds, strict=True)):
            with self._without_reduction(number + 1 < len(microbatches)):
                with self._numerics.autocast():
                    (outputs,) = self._forward([microbatch], [seed])
                losses = self.method.losses(outputs)
                # DDP divides by the number of ranks: scaled so that the sum over all ranks is the step's mean.
                share = self._collectives.world_size / self._num_microbatches
                (_total(losses) * share).backward()  # type: ignore[no-untyped-call]
            outputs = detached(outputs)
            sums.add(losses, self.method.figures(outputs), 1)
            kept.append(self.method.keep(outputs))
        return None if kept[0] is None else gather_outputs(kept, self._collectives)

    def _without_reduction(self, skip: bool) -> Any:
        if skip and isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return contextlib.nullcontext()


def _total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()
