"""Lloyd's iteration, written once for any number of processes, devices and engines.

Shapes: N rows on all ranks, K clusters, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dcdist.clustering.empty import refill
from dcdist.clustering.rows import Centroids, ShardedRows
from dcdist.clustering.search import squared_distances
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator
from dcdist.faults import fault_point


@dataclass(frozen=True)
class Lloyd:
    """What the iteration does with the centroids.

    Args:
        num_iterations: at most so many updates; fewer where nothing changes any more.
        spherical: centroids are normalised after each update.
        fraction_bits: the grid of the exact sums, see exact_sums.py.
        seed: of the draws that refill empty clusters.
    """

    num_iterations: int
    spherical: bool
    fraction_bits: int
    seed: int

    def run(
        self, rows: ShardedRows, initial: torch.Tensor, collectives: Collectives, after_iteration: Callable[[], None]
    ) -> tuple[Centroids, int]:
        """Iterates from the centroids [K, D]; leaves each row assigned to the nearest of the returned ones.

        Collective. `after_iteration` may raise to stop.

        Returns:
            centroids, number of updates made.
        """
        centroids = Centroids(self._normalized(initial))
        for iteration in range(self.num_iterations):
            num_changed = rows.assign(centroids)
            sums, counts, num_changed = _reduced(rows, num_changed, collectives)
            if num_changed == 0 and counts.all():  # the update would give the same centroids again, for ever
                return centroids, iteration
            values = self._updated(sums, counts, centroids.values, iteration)
            centroids = Centroids(values, previous=centroids.values)
            fault_point("kmeans:iteration")
            after_iteration()
        rows.assign(centroids)
        return centroids, self.num_iterations

    def _updated(self, sums: torch.Tensor, counts: torch.Tensor, before: torch.Tensor, iteration: int) -> torch.Tensor:
        means = sums * math.ldexp(1.0, -self.fraction_bits) / counts.clamp(min=1).unsqueeze(1)
        values = torch.where(counts.unsqueeze(1) > 0, means.float(), before)
        refill(values, counts, torch_generator(self.seed, "refill", iteration))
        return self._normalized(values)

    def _normalized(self, values: torch.Tensor) -> torch.Tensor:
        if not self.spherical:
            return values
        origin = torch.zeros(1, values.shape[1])
        lengths = squared_distances(values, origin, torch.zeros(len(values), dtype=torch.int64)).sqrt().unsqueeze(1)
        return (values / torch.where(lengths > 0, lengths, 1.0)).float()


def _reduced(rows: ShardedRows, num_changed: int, collectives: Collectives) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Sums [K, D] and counts [K] of all ranks' rows and the number of rows that changed, in one reduction."""
    sums = rows.sums()
    table = torch.zeros(len(sums) + 1, sums.shape[1] + 1, dtype=torch.float64)
    table[:-1, :-1] = sums
    table[:-1, -1] = torch.bincount(rows.assignments(), minlength=len(sums))
    table[-1, -1] = num_changed
    collectives.all_reduce_sum(table)
    return table[:-1, :-1], table[:-1, -1].long(), int(table[-1, -1])
