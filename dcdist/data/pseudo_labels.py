"""Draws the samples of an epoch from the clusters.

Shapes: N samples of the dataset, P draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def draw_uniform(assignments: Array, num_draws: int, generator: np.random.Generator) -> Array:
    """Sample ids [P] in random order, every non-empty cluster drawn equally often (to within one draw).

    A cluster with fewer members than its share repeats them in passes, so that no member is drawn more than once
    oftener than another. `assignments` [N] int32; negative ones are never drawn.
    """
    members = np.flatnonzero(assignments >= 0)
    members = members[generator.permutation(len(members))]
    members = members[np.argsort(assignments[members], kind="stable")]  # by cluster, shuffled inside
    _, first, counts = np.unique(assignments[members], return_index=True, return_counts=True)
    num_clusters = len(counts)
    shares = np.full(num_clusters, num_draws // num_clusters)
    # The remainder goes to randomly chosen clusters, else low ids would be drawn more often over the epochs.
    shares[generator.permutation(num_clusters)[: num_draws % num_clusters]] += 1
    within = np.arange(num_draws) - np.repeat(np.cumsum(shares) - shares, shares)
    draws: Array = members[np.repeat(first, shares) + within % np.repeat(counts, shares)]
    shuffled: Array = draws[generator.permutation(num_draws)]
    return shuffled


def draw_reference(assignments: Array, num_draws: int, generator: np.random.Generator) -> Array:
    """Sample ids [P] as the published sampler draws them, which is not uniform over clusters.

    The published dataset is reordered by cluster while its sampler emits original ids, so what is read at a drawn
    id is another image: position id of the members in cluster order. Kept to compare with published results.
    """
    by_cluster = np.argsort(assignments, kind="stable")
    by_cluster = by_cluster[assignments[by_cluster] >= 0]
    rank_of = np.cumsum(assignments >= 0) - 1  # an id's position among the assigned samples
    draws: Array = by_cluster[rank_of[draw_uniform(assignments, num_draws, generator)]]
    return draws
