"""Trains a small method for some steps, so that a test can look at it after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcdist.distributed.collectives import Collectives
from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.training_step import StepSums, TrainingStep
from dcdist.methods.base import Method
from dcdist.models.numerics import Numerics
from tests.methods.small_methods import microbatch

NUM_MICROBATCHES = 2


def optimizer_of(
    method: Method, kind: str = "sgd", weight_decay: float = 0.1, learning_rate: float = 0.05
) -> Optimizer:
    """With momentum, at a constant learning rate."""
    names = {parameter: name for name, parameter in method.named_parameters()}
    schedule = Schedule(learning_rate, "constant", 0, 100)
    return Optimizer(method.parameter_groups(), names, kind, 0.9, weight_decay, schedule)


def steps(
    method: Method,
    name: str,
    num_steps: int,
    optimizer: Optimizer | None = None,
    collectives: Collectives | None = None,
    bfloat16: bool = False,
) -> Iterator[StepSums]:
    """Steps over the random images of the method of this name; yields this rank's sums after each."""
    numerics = Numerics(torch.device("cpu"), bfloat16=bfloat16, channels_last=False)
    optimizer = optimizer or optimizer_of(method)
    training_step = TrainingStep(method, optimizer, numerics, collectives or Collectives(), NUM_MICROBATCHES)
    for step in range(num_steps):
        numbers = [100 * step + number for number in training_step.own_microbatches()]
        sums, _ = training_step([microbatch(name, number) for number in numbers], numbers, step)
        yield sums
