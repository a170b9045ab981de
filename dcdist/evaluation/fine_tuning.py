"""Training a network further with labels: what of it is trained, the order of the images, the loop of SGD."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcdist.data.seeded_examples import Key, SeededExamples
from dcdist.distributed.seeding import derive_seed, numpy_generator
from dcdist.errors import RunError
from dcdist.models.backbone import Backbone

T = TypeVar("T")

FC68, ALL = "fc6-8", "all"
MODES = (FC68, ALL)
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum, and how its learning rate falls.

    After each `step` of `steps_of` iterations the rate is multiplied by `factor`; of more or fewer iterations in
    proportion. With `power` it falls to 0 as (1 - iteration / iterations) ** power instead.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    clip_norm: float = 10.0  # gradients are scaled down to this norm
    factor: float = 1.0
    step: int = 1
    steps_of: int = 1
    power: float | None = None

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, from 0."""
        if self.power is not None:
            return self.learning_rate * math.pow(1 - iteration / self.iterations, self.power)
        return self.learning_rate * math.pow(self.factor, iteration * self.steps_of // (self.iterations * self.step))

    def describe(self) -> dict[str, Any]:
        """For a report."""
        if self.power is not None:
            decay = f"(1 - iteration / iterations) ** {self.power:g}"
        elif self.factor == 1:
            decay = "constant"
        else:
            decay = f"times {self.factor:g} after each {self.step / self.steps_of:.4g} of the iterations"
        return {
            "optimizer": "SGD",
            "iterations": self.iterations,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "schedule": decay,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "clip_norm": self.clip_norm,
        }


def set_trained(
    network: nn.Module, backbone: Backbone, mode: str, frozen_convolutions: int = 0, batchnorm: bool = False
) -> None:
    """Puts a network into training mode and says what of its backbone is trained; in place.

    Batch normalisation of the backbone uses its running statistics in every case, as published.

    Args:
        network: what holds the backbone's parts and new layers, which are always trained.
        backbone: of the network.
        mode: FC68: the body is frozen, whatever comes after it is trained; ALL: everything is.
        frozen_convolutions: of ALL, so many first convolutions with their normalisation stay frozen.
        batchnorm: of FC68, whether scales and shifts of the frozen body's batch normalisation are trained.
    """
    network.train()
    backbone.body.requires_grad_(mode == ALL)
    if mode == FC68:
        backbone.body.eval()
    for layer in backbone.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
            if batchnorm:
                layer.requires_grad_(True)
    if mode == ALL:
        _freeze_first(backbone.body, frozen_convolutions)


def _freeze_first(body: nn.Module, count: int) -> None:
    """The first convolutions in the order of the layers, and what is normalised before the next one."""
    seen = 0
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            seen += 1
        if seen > count:
            return
        if seen and not list(layer.children()):
            layer.requires_grad_(False)


def training_keys(num_images: int, count: int, seed: int) -> Iterator[Key]:
    """`count` keys of examples: every image once in an order drawn anew, then again; a function of the arguments."""
    for start in range(0, count, num_images):
        order = numpy_generator(seed, "order", start // num_images).permutation(num_images)
        for offset, index in enumerate(order[: count - start].tolist()):
            yield index, derive_seed(seed, "example", start + offset)


def training_batches(examples: SeededExamples, recipe: Recipe, seed: int) -> Iterator[list[tuple[int, Any]]]:
    """The batches of a training: lists of index and example."""
    loaded = examples.load(training_keys(len(examples), recipe.iterations * recipe.batch_size, seed))
    while batch := list(islice(loaded, recipe.batch_size)):
        yield batch


def fine_tune(
    loss_of: Callable[[T], torch.Tensor],
    parameters: Iterable[nn.Parameter],
    batches: Iterable[T],
    recipe: Recipe,
    seed: int,
    progress: Callable[[str], None],
) -> None:
    """Trains in place; dropout and whatever else draws from torch's global generator is decided by the seed.

    Args:
        loss_of: a batch -> its loss, a scalar.
        parameters: of the network; those that need no gradient stay as they are.
        batches: one an iteration.
        recipe: of the optimizer.
        seed: of what is random within a step.
        progress: takes a line every 20 seconds and at the end.

    Raises:
        RunError: the loss is not finite.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    meter = _Meter(recipe.iterations, progress)
    device = trained[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "steps"))
        for iteration, batch in enumerate(batches):
            loss = loss_of(batch)
            value = loss.item()
            if not np.isfinite(value):
                raise RunError(
                    f"the loss of iteration {iteration + 1} of {recipe.iterations} is {value}: the network has "
                    f"diverged. Take a lower --learning-rate than {recipe.learning_rate:g}"
                )
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(iteration)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            meter.step(value)


class _Meter:
    """Lines about a training that goes on."""

    def __init__(self, iterations: int, say: Callable[[str], None]) -> None:
        self._iterations, self._say = iterations, say
        self._start = self._said = time.monotonic()
        self._done = 0
        self._losses: list[float] = []

    def step(self, loss: float) -> None:
        self._done += 1
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES and self._done < self._iterations:
            return
        self._said = now
        rate = self._done / max(now - self._start, 1e-9)
        left = round((self._iterations - self._done) / rate)
        self._say(
            f"iteration {self._done} of {self._iterations}, loss {np.mean(self._losses):.4f}, {rate:.3g} a second, "
            f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left"
        )
        self._losses.clear()
