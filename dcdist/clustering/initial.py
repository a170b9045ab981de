"""The rows that k-means starts from, drawn by sample id, so that the number of ranks does not matter.

Shapes: n rows of this rank, D features, S samples of the dataset, K clusters.
"""

from __future__ import annotations

import torch

from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives


def draw_sample_ids(
    present: torch.Tensor | None, num_samples: int, num_drawn: int, generator: torch.Generator
) -> torch.Tensor:
    """Distinct sample ids [num_drawn] int64, uniform over those of `present` (None: all of num_samples)."""
    num_present = num_samples if present is None else len(present)
    if 4 * num_drawn > num_present:
        positions = torch.randperm(num_present, generator=generator)[:num_drawn]
    else:  # few of many: an array as long as the data is not needed
        drawn: dict[int, None] = {}
        while len(drawn) < num_drawn:
            batch = torch.randint(num_present, (num_drawn - len(drawn),), generator=generator)
            drawn.update(dict.fromkeys(batch.tolist()))
        positions = torch.tensor(list(drawn))
    return positions if present is None else present[positions]


def present_sample_ids(
    shard: FeatureShard, num_samples: int, num_rows: int, collectives: Collectives
) -> torch.Tensor | None:
    """The sample ids, ascending, that some rank has a row of; None where that is all of them. Collective."""
    if num_rows == num_samples:
        return None
    mask = torch.zeros(num_samples, dtype=torch.uint8)
    mask[shard.sample_ids] = 1
    return torch.nonzero(collectives.all_reduce_max(mask)).squeeze(1)


def take_rows(shard: FeatureShard, sample_ids: torch.Tensor, collectives: Collectives) -> torch.Tensor:
    """The rows [m, D] of these samples, from whichever rank has them, on every rank. Collective."""
    taken = torch.zeros(len(sample_ids), shard.features.shape[1])
    own, where = local_positions(shard, sample_ids)
    taken[where] = shard.features[own]
    return collectives.all_reduce_sum(taken) + 0.0  # -0 becomes 0, as it does in a sum over ranks


def local_positions(shard: FeatureShard, sample_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the samples [m] that this rank has: positions of their rows in the shard, positions in `sample_ids`."""
    ordered, order = shard.sample_ids.sort()
    position = torch.searchsorted(ordered, sample_ids)
    candidates = torch.nonzero(position < len(ordered)).squeeze(1)
    found = candidates[ordered[position[candidates]] == sample_ids[candidates]]
    return order[position[found]], found
