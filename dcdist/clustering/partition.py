"""What every clusterer does before and after its own work: looks at the rows of all ranks, tells all the partition.

Shapes: N rows on all ranks, n of them on this one, D features, K clusters, S samples of the dataset.
"""

from __future__ import annotations

import math

import torch

from dcdist.clustering.exact_sums import add_rows, exact_total, fraction_bits, total_bits
from dcdist.clustering.types import UNASSIGNED, FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.errors import RunError, UsageError

_NO_SAMPLE = 2**62


class NonFiniteFeaturesError(RunError):
    """A row holds nan or inf; `sample_id` says whose (the lowest of several)."""

    def __init__(self, sample_id: int) -> None:
        super().__init__(
            f"the features of sample {sample_id} are not finite: the network has diverged. "
            "Start a new run with a lower train.learning_rate."
        )
        self.sample_id = sample_id


def count_rows(shard: FeatureShard, collectives: Collectives) -> int:
    """N. Collective."""
    return int(collectives.all_reduce_sum(torch.tensor([len(shard.features)])))


def require_rows(num_rows: int, num_clusters: int) -> None:
    """Raises UsageError where there are fewer rows than clusters."""
    if num_rows < num_clusters:
        raise UsageError(
            f"clustering.num_clusters={num_clusters} needs at least as many images with features, here are "
            f"{num_rows}: set clustering.num_clusters to at most {num_rows}"
        )


def largest_magnitude(shard: FeatureShard, collectives: Collectives) -> float:
    """The largest |feature| of all ranks. Collective; raises NonFiniteFeaturesError on all of them."""
    rows = shard.features
    lowest, highest = rows.aminmax() if rows.numel() else (torch.zeros(()), torch.zeros(()))  # nan spreads
    largest = float(torch.maximum(-lowest, highest))
    offender = _NO_SAMPLE
    if not math.isfinite(largest):
        offender = int(shard.sample_ids[~rows.isfinite().all(1)].min())
        largest = math.inf
    extremes = collectives.all_reduce_max(torch.tensor([largest, -float(offender)], dtype=torch.float64))
    if extremes[1] > -_NO_SAMPLE:
        raise NonFiniteFeaturesError(-int(extremes[1]))
    return float(extremes[0])


def cluster_sizes(assignments: torch.Tensor, num_clusters: int, collectives: Collectives) -> torch.Tensor:
    """[K] int64: the rows of all ranks in each cluster, from this rank's assignments [n]. Collective."""
    return collectives.all_reduce_sum(torch.bincount(assignments, minlength=num_clusters))


def cluster_means(
    shard: FeatureShard, assignments: torch.Tensor, sizes: torch.Tensor, largest: float, collectives: Collectives
) -> torch.Tensor:
    """[K, D] float32: the mean of each cluster's rows of all ranks, the same for every split of the rows. Collective.

    Args:
        shard: this rank's rows.
        assignments: [n] of them.
        sizes: [K] rows of each cluster on all ranks, above 0.
        largest: from `largest_magnitude`.
        collectives: joins the ranks.
    """
    bits = fraction_bits(largest, int(sizes.sum()))
    sums = torch.zeros(len(sizes), shard.features.shape[1], dtype=torch.float64)
    add_rows(sums, shard.features, assignments, bits)
    collectives.all_reduce_sum(sums)
    return (sums * math.ldexp(1.0, -bits) / sizes.unsqueeze(1)).float()


def mean_distance(distances: torch.Tensor, num_rows: int, collectives: Collectives) -> float:
    """The mean of the squared distances [n] of all ranks, the same for every split of the rows. Collective."""
    extreme = distances.max().reshape(1) if len(distances) else torch.zeros(1)
    largest = float(collectives.all_reduce_max(extreme))
    total = collectives.all_reduce_sum(exact_total(distances.double(), largest, num_rows))
    return math.ldexp(int(total), -total_bits(largest, num_rows)) / num_rows


def everywhere(
    sample_ids: torch.Tensor,
    assignments: torch.Tensor,
    distances: torch.Tensor,
    num_samples: int,
    collectives: Collectives,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Assignments and distances, each [n], of this rank -> those of all samples [S], on every rank. Collective.

    Returns:
        assignments [S] int32, UNASSIGNED where no rank has a row; distances [S] float32, nan there.
    """
    all_assignments = torch.full((num_samples,), UNASSIGNED, dtype=torch.int32)
    all_distances = torch.full((num_samples,), -1.0)
    all_assignments[sample_ids], all_distances[sample_ids] = assignments, distances
    collectives.all_reduce_max(all_assignments)
    collectives.all_reduce_max(all_distances)
    return all_assignments, all_distances.masked_fill_(all_assignments == UNASSIGNED, torch.nan)
