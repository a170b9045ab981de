"""The rows that k-means++ starts from: far from each other, and the same however the rows lie on ranks and devices.

Distances are computed on a grid so coarse that float64 holds every product and sum exactly, and so fine (2^-21 of the
largest feature at 256 features) that they serve to draw from; so the order of additions cannot change a draw.
Shapes: n rows of this rank, m of them on one device, D features, S samples, K clusters, t candidates of a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from dcdist.clustering.initial import draw_sample_ids, present_sample_ids, take_rows
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives

_FLOAT64_BITS = 53
_INT64_BITS = 62
_ROWS_A_BLOCK = {"cpu": 512, "cuda": 65536}  # converted to float64 at a time: stays in cache on a CPU


def kmeans_plus_plus(
    shard: FeatureShard,
    num_samples: int,
    num_rows: int,
    largest: float,
    num_clusters: int,
    collectives: Collectives,
    generator: torch.Generator,
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    after_round: Callable[[], None] = lambda: None,
    num_trials: int | None = None,
) -> torch.Tensor:
    """The sample ids [K] int64 of K distinct rows, drawn by greedy k-means++. Collective.

    The first is uniform, each further one is drawn with probability proportional to its squared distance D^2 to the
    nearest drawn one (Arthur & Vassilvitskii, "k-means++", 2007); of several candidates the one that leaves the
    smallest sum of D^2 is taken, the first of equals. Where no row is left with D^2 > 0, the rest are uniform.
    A round costs as much as the distances of all rows to t centroids.

    Args:
        shard: this rank's rows.
        num_samples: S.
        num_rows: the rows of all ranks, at least K.
        largest: |feature| of all ranks.
        num_clusters: K.
        collectives: joins the ranks.
        generator: in the same state on every rank.
        devices: the rows are cut into contiguous parts, one a device.
        after_round: called after each round, equally often on every rank; may raise to stop.
        num_trials: t; by default 2 + ln K, as in scikit-learn.
    """
    num_trials = num_trials or 2 + int(math.log(num_clusters))
    present = present_sample_ids(shard, num_samples, num_rows, collectives)
    chosen = draw_sample_ids(present, num_samples, 1, generator)
    rows = _WeightedRows(shard, num_samples, num_rows, largest, devices, collectives)
    rows.choose(take_rows(shard, chosen, collectives))
    while len(chosen) < num_clusters:
        candidates = rows.draw(num_trials, generator)
        if candidates is None:
            everyone = torch.arange(num_samples) if present is None else present
            left = everyone[~torch.isin(everyone, chosen)]
            rest = draw_sample_ids(left, num_samples, num_clusters - len(chosen), generator)
            return torch.cat([chosen, rest])
        best = rows.choose(take_rows(shard, candidates, collectives))
        chosen = torch.cat([chosen, candidates[best : best + 1]])
        after_round()
    return chosen


class _WeightedRows:
    """This rank's rows, each weighted by its squared distance to the nearest chosen one, in whole units."""

    def __init__(
        self,
        shard: FeatureShard,
        num_samples: int,
        num_rows: int,
        largest: float,
        devices: Sequence[torch.device],
        collectives: Collectives,
    ) -> None:
        num_features = shard.features.shape[1]
        # (2 * 2^bits)^2 * D, the largest squared distance on the grid, is at most 2^53.
        bits = (_FLOAT64_BITS - 2 - (num_features - 1).bit_length()) // 2
        scale = math.ldexp(1.0, bits - math.frexp(largest)[1])
        self._unit_bits = max(_FLOAT64_BITS + num_rows.bit_length() - _INT64_BITS, 0)  # so that sums stay below 2^62
        cuts = [len(shard.features) * number // len(devices) for number in range(len(devices) + 1)]
        cut = zip(devices, cuts, cuts[1:], strict=False)
        self._parts = [_Part(shard.features[a:b].to(device), scale) for device, a, b in cut if a < b]
        self._ids, self._order = shard.sample_ids.sort()
        # Weights are added up by blocks of sample ids; in a block that is drawn, those of its samples are compared.
        self._block_size = math.isqrt(num_samples - 1) + 1
        self._blocks = shard.sample_ids // self._block_size
        self._collectives = collectives

    def choose(self, candidates: torch.Tensor) -> int:
        """Makes the best of the candidate rows [t, D] a chosen one; returns its index."""
        for part in self._parts:
            part.consider(candidates)
        potentials = torch.zeros(len(candidates), dtype=torch.int64)
        for part in self._parts:
            potentials += (part.considered.to(torch.int64) >> self._unit_bits).sum(0).cpu()
        best = int(self._collectives.all_reduce_sum(potentials).argmin())  # of equals the first
        for part in self._parts:
            part.nearest = part.considered[:, best].contiguous()
        return best

    def draw(self, num_drawn: int, generator: torch.Generator) -> torch.Tensor | None:
        """Sample ids [num_drawn], with probabilities proportional to the weights; None where all are 0."""
        parts = [torch.empty(0, dtype=torch.int64), *(part.nearest.to(torch.int64).cpu() for part in self._parts)]
        weights = torch.cat(parts) >> self._unit_bits
        sums = torch.zeros(self._block_size, dtype=torch.int64).index_add_(0, self._blocks, weights)
        ends = self._collectives.all_reduce_sum(sums).cumsum(0)
        total = int(ends[-1])
        if total == 0:
            return None
        numbers = torch.randint(2**_INT64_BITS, (num_drawn,), generator=generator).tolist()
        targets = torch.tensor([number * total >> _INT64_BITS for number in numbers])  # no bias, as a remainder has
        blocks = torch.searchsorted(ends, targets, right=True)
        inside = torch.zeros(num_drawn, self._block_size, dtype=torch.int64)
        for number, start in enumerate((blocks * self._block_size).tolist()):
            bounds = torch.searchsorted(self._ids, torch.tensor([start, start + self._block_size]))
            own = slice(*bounds.tolist())
            inside[number, self._ids[own] - start] = weights[self._order[own]]
        self._collectives.all_reduce_sum(inside)
        before = torch.where(blocks > 0, ends[blocks - 1], 0)
        offsets = torch.searchsorted(inside.cumsum(1), (targets - before).unsqueeze(1), right=True).squeeze(1)
        return blocks * self._block_size + offsets


class _Part:
    """Rows [m, D] on one device and their squared distances [m] to the nearest chosen row, whole numbers in float64."""

    def __init__(self, rows: torch.Tensor, scale: float) -> None:
        self._rows = rows
        self._scale = scale
        self._block = _ROWS_A_BLOCK[rows.device.type]
        blocks = torch.split(rows, self._block)
        self._squares = torch.cat([self._on_grid(block).square_().sum(1) for block in blocks])
        self.nearest = torch.full_like(self._squares, torch.inf)
        self.considered = self.nearest.unsqueeze(1)

    def consider(self, candidates: torch.Tensor) -> None:
        """Leaves in `considered` [m, t] what `nearest` would be with each of the rows [t, D] chosen."""
        points = self._on_grid(candidates.to(self._rows.device))
        lengths = points.square().sum(1)
        self.considered = self.nearest.new_empty(len(self._rows), len(points))
        for start in range(0, len(self._rows), self._block):
            own = slice(start, start + self._block)
            squares = lengths + self._squares[own].unsqueeze(1)
            torch.addmm(squares, self._on_grid(self._rows[own]), points.T, alpha=-2, out=self.considered[own])
            self.considered[own].clamp_(max=self.nearest[own].unsqueeze(1))

    def _on_grid(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.double().mul_(self._scale).round_()
