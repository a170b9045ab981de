"""k-means of frozen features, whose restarts are compared in the few directions in which the rows vary most.

Shapes: N rows, D features, K clusters, d leading directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans

from dcdist.distributed.seeding import derive_seed, torch_generator
from dcdist.errors import UsageError

_RESTARTS = (5, 20)  # for each cluster, and at most
_MIN_DIRECTIONS = 32
_DIRECTIONS_PER_CLUSTER = 2
_POWER_ITERATIONS = 2


@dataclass(frozen=True)
class FeatureClusters:
    """k-means of a feature matrix; `objective` is the sum of squared distances / N."""

    assignments: torch.Tensor  # [N] int32
    centroids: torch.Tensor  # [K, D] float32
    objective: float


def cluster_features(
    features: torch.Tensor,
    num_clusters: int,
    seed: int,
    num_restarts: int | None = None,
    max_iterations: int = 300,
) -> FeatureClusters:
    """k-means (scikit-learn's, from k-means++) with restarts, of which the lowest objective is kept.

    Few restarts now and then merge two classes, which costs up to 10 points of accuracy. Where there are many
    features, the restarts run on the rows' leading directions, and the best one of them goes on with all features.

    Args:
        features: [N, D] float32, used as they are.
        num_clusters: K.
        seed: of the initial centroids.
        num_restarts: how often; by default 5 for each cluster, but at most 20.
        max_iterations: of each restart, and with all features; most converge before.

    Raises:
        UsageError: fewer rows than clusters.
    """
    if not 1 <= num_clusters <= len(features):
        raise UsageError(f"{len(features)} images cannot make {num_clusters} clusters: ask for 1 to {len(features)}")
    num_restarts = num_restarts or min(_RESTARTS[0] * num_clusters, _RESTARTS[1])
    leading = leading_directions(features, num_clusters)
    kmeans = KMeans(
        num_clusters,
        n_init=num_restarts,
        max_iter=max_iterations,
        random_state=derive_seed(seed, "cluster_features") % 2**32,  # what scikit-learn takes
    ).fit(leading.numpy())
    if leading is not features:
        initial = cluster_means(features, torch.from_numpy(kmeans.labels_), num_clusters).numpy()
        kmeans = KMeans(num_clusters, init=initial, n_init=1, max_iter=max_iterations).fit(features.numpy())
    return FeatureClusters(
        assignments=torch.from_numpy(kmeans.labels_.astype(np.int32)),
        centroids=torch.from_numpy(kmeans.cluster_centers_.astype(np.float32)),
        objective=float(kmeans.inertia_) / len(features),
    )


def leading_directions(rows: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """The centred rows in the directions of their largest variances [N, d], nearly; the rows where that is no less.

    32 directions, or 2 for each of K clusters: as many as clusters hold about all that can lie between centroids. By
    a randomised subspace iteration (Halko et al., 2011), a few products with the rows; the same on every call.
    """
    num_directions = max(_MIN_DIRECTIONS, _DIRECTIONS_PER_CLUSTER * num_clusters)
    if num_directions >= min(rows.shape):
        return rows
    centred = rows - rows.mean(0)
    basis = torch.randn(rows.shape[1], num_directions, generator=torch_generator("leading_directions"))
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    return centred @ basis


def cluster_means(rows: torch.Tensor, assignments: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """The mean [K, D] of the rows of each cluster; 0 for one without rows."""
    sums = torch.zeros(num_clusters, rows.shape[1]).index_add_(0, assignments.long(), rows)
    return sums / torch.bincount(assignments, minlength=num_clusters).clamp(min=1).unsqueeze(1)
