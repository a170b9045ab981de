"""Trains many classifiers at once on frozen layers, in one pass over the images, and scores them on held-out ones.

Shapes: b images of this rank, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dcdist.data.loader import BatchLoader, Request
from dcdist.data.preparation import prepare
from dcdist.data.source import ImageSource
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator
from dcdist.errors import RunError
from dcdist.evaluation.probe_inputs import PooledMaps, ProbeBatch, ProbeInputs
from dcdist.evaluation.probe_recipes import ProbeRecipe
from dcdist.evaluation.probes import Keep, Probe, ProbeName
from dcdist.features import contiguous_range

TOP5_CLASSES = 5  # top-5 accuracy is given where there are more
_MOMENTUM = 0.9


@dataclass(frozen=True)
class ProbeScore:
    """Shares of held-out images whose class got the largest score, and one of the five largest."""

    top1: float
    top5: float | None


def build_probes(
    maps: PooledMaps, names: Sequence[ProbeName], num_classes: int, recipe: ProbeRecipe, seed: int
) -> dict[ProbeName, Probe]:
    """New classifiers; initial weights depend on the seed, the layer and the kind, not on what else is trained."""
    return {
        name: Probe(
            maps.shapes[name.network, name.layer],
            num_classes,
            name.kind,
            recipe.normalize,
            torch_generator(seed, "probe", name.network, name.layer, name.kind),
        ).to(maps.device)
        for name in names
    }


def train_probes(
    probes: Mapping[ProbeName, Probe],
    inputs: ProbeInputs,
    recipe: ProbeRecipe,
    collectives: Collectives,
    seed: int,
    after_step: Callable[[int, int, float], None] = lambda _step, _steps, _loss: None,
) -> None:
    """SGD on the sum of the classifiers' mean cross-entropies; none has a weight of another. Collective.

    Args:
        probes: trained in place; equal on every rank.
        inputs: the images, as pooled maps.
        recipe: the schedule.
        collectives: joins the ranks.
        seed: of the order of the images, their crops and dropout.
        after_step: called with the number of steps taken, of all steps, and the mean loss of a classifier.

    Raises:
        RunError: a loss is not finite.
    """
    parameters = [parameter for probe in probes.values() for parameter in probe.parameters()]
    optimizer = torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=_MOMENTUM, weight_decay=recipe.weight_decay
    )
    steps_an_epoch = -(-inputs.num_images // recipe.batch_size)
    step = 0
    for epoch in range(recipe.num_epochs):
        for batch in inputs.epoch(seed, epoch, recipe.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, steps_an_epoch)
            optimizer.zero_grad()
            loss = _loss(probes, batch, collectives, (seed, epoch, step))
            loss.backward()  # type: ignore[no-untyped-call]
            total = _reduce(parameters, loss.detach(), collectives)
            if not torch.isfinite(total):
                raise RunError(
                    f"the classifiers' loss is {float(total)} after {step} steps: set a lower learning rate than "
                    f"{recipe.learning_rate:g}"
                )
            optimizer.step()
            step += 1
            after_step(step, steps_an_epoch * recipe.num_epochs, float(total) / len(probes))


def _loss(
    probes: Mapping[ProbeName, Probe], batch: ProbeBatch, collectives: Collectives, seed: tuple[int, int, int]
) -> torch.Tensor:
    """This rank's share of the sum of the mean losses."""
    total = torch.zeros((), device=batch.labels.device)
    for name, probe in probes.items():
        pooled = batch.pooled[name.network, name.layer]
        moments = probe.observe(pooled[batch.labels >= 0], collectives)  # not the black pictures of damaged files
        keep = Keep(batch.rows, batch.batch_size, *seed, name.layer)
        scores = probe(pooled, moments, keep)
        total = total + functional.cross_entropy(scores, batch.labels, ignore_index=-1, reduction="sum")
    return total / batch.batch_size


def _reduce(parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor, collectives: Collectives) -> torch.Tensor:
    """Sums the gradients over the ranks, in one message; returns the loss of all."""
    if collectives.world_size == 1:
        return loss
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    every = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
    collectives.all_reduce_sum(every)
    parts = torch.split(every[1:], [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return every[0]


@torch.no_grad()
def score_probes(
    probes: Mapping[ProbeName, Probe],
    maps: PooledMaps,
    source: ImageSource,
    views: Sequence[View],
    mirrored: bool,
    loader: BatchLoader,
    batch_size: int,
    collectives: Collectives,
) -> dict[ProbeName, ProbeScore]:
    """Accuracies on the labelled images of a source, by the mean of the softmax over crops. Collective.

    Args:
        probes: trained.
        maps: the networks.
        source: held-out images.
        views: the crops.
        mirrored: each crop also mirrored (Krizhevsky et al. 2012: 5 crops and their mirror images are 10).
        loader: loads `source`.
        batch_size: images at a time.
        collectives: joins the ranks.
    """
    assert source.labels is not None
    labelled = np.flatnonzero(source.labels >= 0)
    share = contiguous_range(len(labelled), collectives.rank, collectives.world_size)
    own = labelled[share.start : share.stop]
    requests = (
        Request(own[start : start + batch_size], source.labels[own[start : start + batch_size]], tuple(views), seed=0)
        for start in range(0, len(own), batch_size)
    )
    right = torch.zeros(len(probes), 2, dtype=torch.int64)
    count = torch.zeros(1, dtype=torch.int64)
    for batch in loader.load(source, requests):
        prepared = prepare(batch.to(maps.device), views).views
        crops = [*prepared, *(crop.flip(3) for crop in prepared)] if mirrored else prepared
        probabilities: list[torch.Tensor] = []
        for number, crop in enumerate(crops):
            pooled = maps(crop)
            found = [probe(pooled[name.network, name.layer]).softmax(1).cpu() for name, probe in probes.items()]
            probabilities = found if number == 0 else [p + q for p, q in zip(probabilities, found, strict=True)]
        assert batch.targets is not None
        labels = batch.targets.cpu()[batch.decoded][:, None]
        count += len(labels)
        for number, mean in enumerate(probabilities):
            best = mean[batch.decoded].topk(min(TOP5_CLASSES, mean.shape[1])).indices == labels
            right[number] += torch.stack([best[:, 0].sum(), best.any(1).sum()])
    total = int(collectives.all_reduce_sum(count))
    shares = collectives.all_reduce_sum(right).double() / max(total, 1)
    return {
        name: ProbeScore(top1, top5 if probe.num_classes > TOP5_CLASSES else None)
        for (name, probe), (top1, top5) in zip(probes.items(), shares.tolist(), strict=True)
    }
