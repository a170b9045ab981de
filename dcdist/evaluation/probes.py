"""Linear classifiers on the maps of frozen layers: how maps are pooled, and what is trained on them.

Shapes: B images, C channels of a map, h x w its positions, g x g those that are left, D = C * g * g, K classes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator
from dcdist.models.backbone import OUTPUT

ProbeKind = Literal["linear", "mlp"]
Pools = Literal["deepcluster", "goyal"]

LARGEST_DIMENSIONS = 9600  # about as many features of every layer, as published
HIDDEN = 4096  # as fc6 and fc7 of AlexNet
_MOMENTUM, _EPSILON = 0.1, 1e-5  # torch's for batch normalisation
# layer: kernel, stride, padding of an average pooling, and the side of the map that it was published for
AVERAGE_POOLS: dict[Pools, dict[str, dict[str, tuple[int, int, int, int]]]] = {
    # DeepCluster's eval_linear (Caron et al., 2018), after Zhang et al. (2017)
    "deepcluster": {
        "alexnet": {
            "conv1": (6, 6, 3, 55),
            "conv2": (4, 4, 0, 27),
            "conv3": (3, 3, 1, 13),
            "conv4": (3, 3, 1, 13),
            "conv5": (2, 2, 0, 13),
        },
        "vgg16": {
            f"conv{number}": (kernel, kernel, 0, 224 // 2**group)
            for group, (numbers, kernel) in enumerate(
                (((1, 2), 18), ((3, 4), 14), ((5, 6, 7), 9), ((8, 9, 10), 6), ((11, 12, 13), 3))
            )
            for number in numbers
        },
    },
    # Goyal et al. (2019): overlapping
    "goyal": {
        "alexnet": {
            "conv1": (19, 4, 0, 55),
            "conv2": (12, 3, 0, 27),
            "conv3": (9, 1, 0, 13),
            "conv4": (9, 1, 0, 13),
            "conv5": (8, 1, 0, 13),
        },
    },
}


def pooling(network: str, layer: str, map_shape: tuple[int, ...], pools: Pools) -> nn.Module:
    """The average pooling of a layer's maps [B, C, h, w]; nothing for the network's output [B, D].

    As published where the network and the side of its map are; else to the finest square grid of at most 9,600 values.
    """
    if layer == OUTPUT:
        return nn.Identity()
    published = AVERAGE_POOLS[pools].get(network, {}).get(layer)
    _, channels, height, width = map_shape
    if published is not None and published[3] == height == width:
        kernel, stride, padding, _ = published
        return nn.AvgPool2d(kernel, stride, padding)
    side = max(1, min(height, width, math.isqrt(LARGEST_DIMENSIONS // channels)))
    return nn.AdaptiveAvgPool2d(side)


class Probe(nn.Module):
    """A classifier of pooled maps.

    Args:
        shape: of a pooled map, [C, g, g], or [D].
        num_classes: K.
        kind: a linear layer, or a perceptron with two hidden layers of 4,096 (as AlexNet's own three).
        normalize: the channels by the moments of the batch while training and by their running averages later, as batch
            normalisation without weights of its own. The network is frozen, so nothing goes back through it.
        generator: of the initial weights, N(0, 0.01), of the perceptron's hidden layers by Kaiming's rule.
    """

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(
        self, shape: tuple[int, ...], num_classes: int, kind: ProbeKind, normalize: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._normalize = normalize
        widths = [math.prod(shape), *((HIDDEN, HIDDEN) if kind == "mlp" else ()), num_classes]
        self.num_classes = num_classes
        linears = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
        self.linears = nn.ModuleList(linears)
        with torch.no_grad():
            for linear in linears:
                last = linear is linears[-1]
                deviation = 0.01 if last else math.sqrt(2 / linear.in_features)
                linear.weight.normal_(0.0, deviation, generator=generator)
                linear.bias.zero_()
        self.register_buffer("mean", torch.zeros(shape[0]))
        self.register_buffer("variance", torch.ones(shape[0]))

    @torch.no_grad()
    def observe(self, pooled: torch.Tensor, collectives: Collectives) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The moments of the channels over the batches of all ranks; moves the running averages. Collective.

        None where nothing is normalised.
        """
        if not self._normalize:
            return None
        by_channel = pooled.float().transpose(0, 1).flatten(1)
        sums = torch.cat([by_channel.sum(1), by_channel.square().sum(1)]).double()
        total = collectives.all_reduce_sum(torch.cat([sums, sums.new_tensor([by_channel.shape[1]])]))
        count = total[-1]
        mean, square = (total[:-1] / count).view(2, -1)
        variance = (square - mean.square()).clamp_min(0)
        self.mean.lerp_(mean.float(), _MOMENTUM)
        self.variance.lerp_((variance * count / (count - 1).clamp_min(1)).float(), _MOMENTUM)
        return mean.float(), variance.float()

    def forward(
        self, pooled: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor] | None = None, keep: Keep | None = None
    ) -> torch.Tensor:
        """Pooled maps [B, C, g, g] -> scores [B, K].

        Args:
            pooled: of any float type.
            moments: what `observe` gave, while training.
            keep: which hidden units are kept, while training.
        """
        rows = pooled.float()
        if self._normalize:
            mean, variance = moments or (self.mean, self.variance)
            shape = (-1, *(1,) * (rows.ndim - 2))
            rows = (rows - mean.view(shape)) / (variance.view(shape) + _EPSILON).sqrt()
        rows = rows.flatten(1)
        *hidden, last = self.linears
        for number, linear in enumerate(hidden):
            rows = linear(rows).relu()
            if keep is not None:
                rows = rows * keep(number, rows.device)
        scores: torch.Tensor = last(rows)
        return scores


class Keep:
    """Dropout of half of the hidden units, drawn for the whole batch, so that it does not depend on the ranks.

    Args:
        rows: of the batch, those of this rank.
        batch_size: of all ranks.
        seed: coordinates of the random choice.
    """

    def __init__(self, rows: slice, batch_size: int, *seed: int | str) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed

    def __call__(self, layer: int, device: torch.device) -> torch.Tensor:
        """[b, 4096]: 0 for what is dropped, else 2."""
        generator = torch_generator(*self._seed, "dropout", layer)
        kept = torch.rand(self._batch_size, HIDDEN, generator=generator) < 0.5
        return kept[self._rows].to(device) * 2.0


@dataclass(frozen=True)
class ProbeName:
    """Which classifier it is."""

    network: str
    layer: str
    kind: ProbeKind
