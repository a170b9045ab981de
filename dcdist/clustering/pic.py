"""Power iteration clustering: clusters are where a walk on the graph of nearest neighbours gathers; K is found.

Shapes: N rows on all ranks (nodes of the graph), k neighbours, S samples of the dataset, C clusters, M those kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from dcdist.clustering.neighbors import nearest_neighbors
from dcdist.clustering.partition import (
    cluster_means,
    cluster_sizes,
    count_rows,
    everywhere,
    largest_magnitude,
    mean_distance,
)
from dcdist.clustering.search import nearest_centroids, squared_distances
from dcdist.clustering.types import UNASSIGNED, FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives

_ITERATIONS_A_ROUND = 20  # between two calls of at_boundary


class PicPartition(NamedTuple):
    """The clusters that the data have, before they are fitted to the head."""

    assignments: torch.Tensor  # [S] int32, by decreasing size of the cluster; UNASSIGNED where a sample has no row
    num_clusters: int  # C


@dataclass(frozen=True)
class PowerIterationClustering:
    """DeepCluster's alternative to k-means; a `Clusterer` that finds K itself.

    Lin & Cohen, "Power iteration clustering" (2010), on a sparse graph, with the modes that Caron et al. (DeepCluster,
    2018) cut it into: each node points to the neighbour j that maximises w_ij (v_j - v_i), where that is above 0, and
    the nodes that lead to one root are a cluster. A cluster of one node joins that of the node's nearest neighbour
    which is in a larger one; where there is none, it stays. Clusters are numbered by decreasing size, equally large
    ones by their lowest sample id.

    Args:
        num_neighbors: k, edges that each node brings into the graph.
        sigma: an edge weighs exp(-d^2 / sigma^2); 0.2 is meant for rows of length 1.
        num_iterations: of the walk, v <- alpha W v + (1 - alpha) / N, scaled to a sum of 1.
        alpha: share of the walk that follows edges.
        max_clusters: M, what the head has room for. Where the data have more, the M largest are kept, and each of the
            others joins the one of them that has the nearest centroid.
        device: where neighbours are searched.
    """

    num_neighbors: int = 5
    sigma: float = 0.2
    num_iterations: int = 200
    alpha: float = 0.001
    max_clusters: int = 10_000
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def least_rows(self) -> int:
        """See `Clusterer`."""
        return self.num_neighbors + 1

    @torch.no_grad()
    def fit(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,  # noqa: ARG002 (nothing is drawn)
        at_boundary: Callable[[], None] = lambda: None,
    ) -> HeadClustering:
        """Partitions the rows of all ranks. Collective; see `Clusterer`.

        Returns:
            a clustering of at most M clusters, each centroid the mean of its rows. Its `num_empty_repaired` is 0.

        Raises:
            UsageError: not more rows than neighbours.
            NonFiniteFeaturesError: a row holds nan or inf.
        """
        clock = [time.monotonic()]
        partition = self.partition(shard, num_samples, collectives, at_boundary)
        clock.append(time.monotonic())
        num_rows, largest = count_rows(shard, collectives), largest_magnitude(shard, collectives)
        assignments = partition.assignments[shard.sample_ids]
        sizes = cluster_sizes(assignments, partition.num_clusters, collectives)
        centroids = cluster_means(shard, assignments, sizes, largest, collectives)
        if len(sizes) > self.max_clusters:
            kept_as = merge_smallest(centroids, sizes, self.max_clusters)
            assignments = kept_as[assignments].int()
            sizes = torch.zeros(self.max_clusters, dtype=torch.int64).index_add_(0, kept_as, sizes)
            centroids = cluster_means(shard, assignments, sizes, largest, collectives)
        distances = squared_distances(shard.features, centroids, assignments).float()
        objective = mean_distance(distances, num_rows, collectives)
        assignments, distances = everywhere(shard.sample_ids, assignments, distances, num_samples, collectives)
        clock.append(time.monotonic())
        return HeadClustering(
            assignments=assignments,
            distances=distances,
            centroids=centroids,
            objective=objective,
            num_iterations=self.num_iterations,
            num_empty_repaired=0,
            placement="distributed",
            seconds={"partition": clock[1] - clock[0], "finish": clock[2] - clock[1]},
            num_merged=partition.num_clusters - len(centroids),
        )

    def partition(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,
        at_boundary: Callable[[], None] = lambda: None,
    ) -> PicPartition:
        """As many clusters as the data have, whatever `max_clusters` is. Collective.

        Every rank searches the neighbours of its rows; the walk, which is cheap, is rank 0's.
        """
        found = nearest_neighbors(shard, self.num_neighbors, num_samples, collectives, at_boundary, device=self.device)
        sample_ids = collectives.gather_rows(found.sample_ids)
        indices = collectives.gather_rows(found.indices)
        squared = collectives.gather_rows(found.distances)
        neighbors, graph, mass = None, None, None
        if sample_ids is not None and indices is not None and squared is not None:
            sample_ids, order = sample_ids.sort()
            neighbors = torch.searchsorted(sample_ids, indices[order]).numpy()
            graph = neighbor_graph(neighbors, squared[order].numpy(), self.sigma)
            mass = np.full(len(sample_ids), 1 / len(sample_ids))
        for done in range(0, self.num_iterations, _ITERATIONS_A_ROUND):
            if graph is not None and mass is not None:
                mass = walk(graph, mass, self.alpha, min(_ITERATIONS_A_ROUND, self.num_iterations - done))
            collectives.barrier()
            at_boundary()
        assignments = torch.full((num_samples,), UNASSIGNED, dtype=torch.int32)
        if sample_ids is not None and neighbors is not None and graph is not None and mass is not None:
            roots = join_singletons(follow_to_roots(graph, mass), neighbors)
            assignments[sample_ids] = torch.from_numpy(_numbered_by_size(roots))
        collectives.broadcast(assignments)
        return PicPartition(assignments, int(assignments.max()) + 1)


def neighbor_graph(neighbors: np.ndarray, squared_distances: np.ndarray, sigma: float) -> scipy.sparse.csr_array:
    """W = A + A^T, [N, N], with a_ij = exp(-d_ij^2 / sigma^2) where j is a neighbour of i, from [N, k] of both."""
    num_nodes, width = neighbors.shape
    weights = np.exp(-squared_distances.astype(np.float64) / sigma**2).ravel()
    ends = np.arange(num_nodes + 1) * width
    directed = scipy.sparse.csr_array((weights, neighbors.ravel(), ends), shape=(num_nodes, num_nodes))
    graph = (directed + directed.T).tocsr()
    graph.sort_indices()
    return graph


def walk(graph: scipy.sparse.csr_array, mass: np.ndarray, alpha: float, num_iterations: int) -> np.ndarray:
    """The mass [N] of each node after as many steps v <- alpha W v + (1 - alpha) / N, scaled to a sum of 1."""
    for _ in range(num_iterations):
        mass = alpha * (graph @ mass) + (1 - alpha) / len(mass)
        mass /= mass.sum()
    return mass


def follow_to_roots(graph: scipy.sparse.csr_array, mass: np.ndarray) -> np.ndarray:
    """[N]: the node at which each node's path ends; of equally attractive neighbours the lowest index is followed."""
    degrees = np.diff(graph.indptr)
    nodes = np.repeat(np.arange(len(mass)), degrees)
    gains = graph.data * (mass[graph.indices] - mass[nodes])
    rising = np.flatnonzero(gains > 0)
    climbers, starts, counts = np.unique(nodes[rising], return_index=True, return_counts=True)
    steepest = np.repeat(np.maximum.reduceat(gains[rising], starts), counts)
    attaining = rising[gains[rising] == steepest]
    first = np.unique(nodes[attaining], return_index=True)[1]
    parents = np.arange(len(mass))
    parents[climbers] = graph.indices[attaining[first]]
    while not np.array_equal(grandparents := parents[parents], parents):  # mass rises along a path, so none is a circle
        parents = grandparents
    return parents


def join_singletons(roots: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Roots [N] where a node alone has that of its nearest neighbour (of [N, k], nearest first) which is not alone."""
    is_alone = np.bincount(roots, minlength=len(roots))[roots] == 1
    alone = np.flatnonzero(is_alone)
    in_company = ~is_alone[neighbors[alone]]
    nearest = neighbors[alone, in_company.argmax(1)]
    joined = roots.copy()
    joined[alone] = np.where(in_company.any(1), roots[nearest], roots[alone])
    return joined


def merge_smallest(centroids: torch.Tensor, sizes: torch.Tensor, num_kept: int) -> torch.Tensor:
    """[C] int64: what each cluster is after the smallest have joined the nearest of the `num_kept` largest.

    Args:
        centroids: [C, D], clusters by decreasing size.
        sizes: [C] int64.
        num_kept: M.

    Returns:
        numbers 0 .. M - 1, again by decreasing size.
    """
    nearest, _ = nearest_centroids(centroids[num_kept:], centroids[:num_kept])
    joins = torch.cat([torch.arange(num_kept), nearest.long()])
    merged_sizes = torch.zeros(num_kept, dtype=torch.int64).index_add_(0, joins, sizes)
    return merged_sizes.argsort(descending=True, stable=True).argsort()[joins]


def _numbered_by_size(roots: np.ndarray) -> np.ndarray:
    """[N] int32: clusters by decreasing size, equally large ones in the order of their first members."""
    _, first, which, sizes = np.unique(roots, return_index=True, return_inverse=True, return_counts=True)
    number_of = np.empty(len(sizes), np.int32)
    number_of[np.lexsort((first, -sizes))] = np.arange(len(sizes), dtype=np.int32)
    return number_of[which]
