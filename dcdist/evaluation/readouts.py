"""The read-outs that every row of a comparison shares: K clusters of frozen features, without labels.

Shapes: N rows that are clustered, M other rows, D features, K clusters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dcdist.clustering.linear_scan import LinearScan, linear_logits
from dcdist.clustering.merge import merge_clusters
from dcdist.clustering.neighbors import Neighbors, nearest_neighbors
from dcdist.clustering.pca import fit_pca, l2_normalize
from dcdist.clustering.search import nearest_centroids
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator
from dcdist.evaluation.feature_clusters import cluster_features, cluster_means, leading_directions

PLAIN, WHITENED, WARD, NEIGHBORS = "plain", "whitened", "ward", "neighbors"
_WARD_CLUSTERS_PER_CLUSTER = 20
_WARD_CLUSTERS = (200, 2000)  # at least, and at most: merging takes the square of it in memory
_WARD_ROWS_PER_CLUSTER = 5
_WARD_ITERATIONS = 10  # clusters that are to be merged need not be settled
_NEIGHBORS_OUTPUTS = 1000  # of all starts together: 32 starts up to 31 classes, one from 1,000 on
_ROWS_A_BLOCK = 4096


@dataclass(frozen=True)
class FittedReadout:
    """K clusters of some rows, and where other rows of the same network belong."""

    assignments: torch.Tensor  # [N] int32, of the rows that were clustered
    assign: Callable[[torch.Tensor], torch.Tensor]  # features [M, D] -> clusters [M] int32


def label_free_readouts(
    features: torch.Tensor, num_clusters: int, whitening_dimensions: int
) -> Mapping[str, Callable[[int], FittedReadout]]:
    """The read-outs by name, each a function of a seed; what does not depend on the seed is done once.

    Plain: rows of length 1, k-means. Whitened: principal components of equal variance, then length 1, k-means. Ward:
    rows of length 1, many clusters of k-means merged by Ward's rule. Neighbours: rows as for whitened, linear
    classifiers trained to agree with each row's neighbours (`LinearScan`).

    Args:
        features: [N, D] float32.
        num_clusters: K.
        whitening_dimensions: components kept, as far as there are.

    Raises:
        RunError: the rows are all equal, or not finite.
    """
    whiten = whitened(features, whitening_dimensions)
    plain_rows, white_rows = l2_normalize(features), whiten(features)

    def by_kmeans(transform: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, seed: int) -> FittedReadout:
        found = cluster_features(rows, num_clusters, seed)
        return FittedReadout(found.assignments, lambda others: nearest_centroids(transform(others), found.centroids)[0])

    num_heads = min(LinearScan.num_heads, max(1, _NEIGHBORS_OUTPUTS // num_clusters))
    scan = LinearScan(num_clusters, num_neighbors=min(LinearScan.num_neighbors, len(features) - 1), num_heads=num_heads)
    shard = FeatureShard(torch.arange(len(features)), white_rows)

    @functools.cache
    def neighbors() -> Neighbors:
        return nearest_neighbors(shard, scan.num_neighbors, len(features), Collectives())

    def by_neighbors(seed: int) -> FittedReadout:
        generator = torch_generator(seed, "readout", 0)
        linear = scan.fit(shard, len(features), Collectives(), generator, found=neighbors()).linear
        assert linear is not None
        return FittedReadout(
            linear_logits(white_rows, linear).argmax(1).int(),
            lambda others: linear_logits(whiten(others), linear).argmax(1).int(),
        )

    return {
        PLAIN: lambda seed: by_kmeans(l2_normalize, plain_rows, seed),
        WHITENED: lambda seed: by_kmeans(whiten, white_rows, seed),
        WARD: lambda seed: ward_readout(plain_rows, num_clusters, seed),
        NEIGHBORS: by_neighbors,
    }


def ward_readout(rows: torch.Tensor, num_clusters: int, seed: int) -> FittedReadout:
    """Many clusters of k-means of rows [N, D] of length 1, merged to K by Ward's rule. Linear in N.

    The many are 20 for each wanted cluster, between 200 and 2000, and leave 5 rows each.
    """
    at_least, at_most = _WARD_CLUSTERS
    num_many = min(max(at_least, _WARD_CLUSTERS_PER_CLUSTER * num_clusters), at_most)
    num_many = max(num_clusters, min(num_many, len(rows) // _WARD_ROWS_PER_CLUSTER))
    leading = leading_directions(rows, num_clusters)
    many = cluster_features(leading, num_many, seed, num_restarts=1, max_iterations=_WARD_ITERATIONS)
    centroids = cluster_means(rows, many.assignments, num_many)
    merged_to = merge_clusters(centroids, torch.bincount(many.assignments, minlength=num_many), num_clusters)

    def assign(rows: torch.Tensor) -> torch.Tensor:
        return merged_to[nearest_centroids(rows, centroids)[0].long()]

    return FittedReadout(assign(rows), lambda others: assign(l2_normalize(others)))


def whitened(
    features: torch.Tensor, num_dimensions: int, epsilon: float = 1e-4
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The transform that whitens the principal components of these rows, then scales each row to length 1.

    Args:
        features: [N, D] float32, the rows that the components are fitted to.
        num_dimensions: components kept; at most min(N, D) are.
        epsilon: share of the largest eigenvalue added to each before whitening.

    Raises:
        RunError: the rows are all equal, or not finite.
    """
    dimensions = min(num_dimensions, *features.shape)
    pca = fit_pca(lambda: iter(torch.split(features, _ROWS_A_BLOCK)), dimensions, True, epsilon, Collectives())
    return lambda rows: l2_normalize(pca.transform(rows))
