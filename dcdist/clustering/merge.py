"""Merges many clusters into few without labels, by Ward's rule on their centroids.

Shapes: K clusters, D features, M merged clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dcdist.errors import UsageError

_Array = np.ndarray[Any, Any]

# New images may be nearest to its centroid, though no image that was clustered is.
_WEIGHT_OF_AN_EMPTY_CLUSTER = 1e-12


def merge_clusters(centroids: torch.Tensor, sizes: torch.Tensor, num_merged: int) -> torch.Tensor:
    """The merged cluster [K] int32 of each of K clusters, numbered by decreasing size.

    Agglomerative: the two clusters whose union raises the sum of squared distances least are joined, until
    `num_merged` are left (Ward, 1963): joining a and b costs n_a n_b / (n_a + n_b) |c_a - c_b|^2. Empty clusters
    weigh next to nothing, so each joins its nearest before any other two are joined. O(K^2) memory, O(K^2) to O(K^3)
    time: for the few thousand clusters of a read-out.

    Args:
        centroids: [K, D].
        sizes: [K] members of each.
        num_merged: M.

    Raises:
        UsageError: more clusters asked for than there are.
    """
    num_clusters = len(centroids)
    if not 1 <= num_merged <= num_clusters:
        raise UsageError(
            f"cannot merge {num_clusters} clusters to {num_merged}: readout.merge_to must lie between 1 and "
            f"the number of clusters ({num_clusters})"
        )
    means = centroids.double().numpy().copy()
    weights = np.maximum(sizes.double().numpy(), _WEIGHT_OF_AN_EMPTY_CLUSTER)
    squares = (means**2).sum(1)
    costs = squares[:, None] + squares[None, :] - 2.0 * means @ means.T
    costs = np.maximum(costs, 0.0) * _harmonic(weights[:, None], weights[None, :])
    costs[np.tril_indices(num_clusters)] = np.inf  # each pair once, the lower id first
    parents = np.arange(num_clusters)
    for _ in range(num_clusters - num_merged):
        first, second = np.unravel_index(int(np.argmin(costs)), costs.shape)  # ties: the lowest ids
        total = weights[first] + weights[second]
        means[first] = (weights[first] * means[first] + weights[second] * means[second]) / total
        weights[first] = total
        parents[parents == second] = first
        costs[second, :] = costs[:, second] = np.inf
        alive = np.unique(parents)
        others = alive[alive != first]
        new = ((means[others] - means[first]) ** 2).sum(1) * _harmonic(weights[others], total)
        costs[np.minimum(others, first), np.maximum(others, first)] = new
    alive = np.unique(parents)
    by_size = alive[np.argsort(-weights[alive], kind="stable")]
    number_of = np.zeros(num_clusters, np.int32)
    number_of[by_size] = np.arange(num_merged, dtype=np.int32)
    return torch.from_numpy(number_of[parents])


def _harmonic(a: _Array, b: _Array | float) -> _Array:
    product: _Array = a * b / (a + b)
    return product
