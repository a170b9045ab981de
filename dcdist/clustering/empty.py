"""Clusters that lost their rows: refilled while centroids still move, given a row of their own at the end.

Shapes: K clusters, D features, n rows of this rank, E empty clusters.
"""

from __future__ import annotations

import heapq

import numpy as np
import torch

from dcdist.distributed.collectives import Collectives

_PERTURBATION = 1 / 1024


def refill(centroids: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> int:
    """Splits a large cluster for each empty one, in place; returns how many were refilled.

    As faiss does: a donor is drawn with probability proportional to its rows less one, both get its centroid, one
    with even features larger and odd ones smaller by 1/1024, the other the opposite way, and half of its rows count
    for each. Draws are made in rounds, in each of which a donor gives once.

    Args:
        centroids: [K, D] float32, changed.
        counts: [K] int64 rows of each, changed to the expected ones.
        generator: in the same state on every rank.
    """
    empty = torch.nonzero(counts == 0).squeeze(1)
    num_empty = len(empty)
    signs = 1 - 2 * (torch.arange(centroids.shape[1]) % 2)
    factors = 1 + _PERTURBATION * signs
    while len(empty) and int(counts.max()) > 1:
        ends = (counts - 1).clamp(min=0).cumsum(0)
        draws = torch.randint(int(ends[-1]), (len(empty),), generator=generator)
        donors = torch.unique(torch.searchsorted(ends, draws, right=True))
        receivers, empty = empty[: len(donors)], empty[len(donors) :]
        originals, halves = centroids[donors], counts[donors] // 2
        centroids[receivers], centroids[donors] = originals * factors, originals * (2 - factors)
        counts[receivers] = halves
        counts[donors] -= halves
    return num_empty - len(empty)


def farthest_rows(
    assignments: torch.Tensor,
    distances: torch.Tensor,
    sample_ids: torch.Tensor,
    counts: torch.Tensor,
    collectives: Collectives,
) -> torch.Tensor:
    """The sample ids [E] int64 that are given to the empty clusters, in the order of these. Collective.

    Each takes a row from the cluster that is largest by then (the lowest index of several), there the row farthest
    from its centroid (the lowest sample id of several).

    Args:
        assignments: [n] int32 of this rank's rows.
        distances: [n] float32 to their centroids.
        sample_ids: [n] int64.
        counts: [K] int64 rows of each cluster, on all ranks; their sum is at least K.
        collectives: joins the ranks.
    """
    num_taken = _taken_rows(counts)
    own = np.flatnonzero(num_taken[assignments.numpy()])
    columns = (assignments.numpy()[own], -distances.numpy()[own], sample_ids.numpy()[own])
    rows = np.stack(columns, axis=1, dtype=np.float64)
    gathered = collectives.all_gather_rows(torch.from_numpy(_first_of_each(rows, num_taken)))
    return torch.from_numpy(_first_of_each(gathered.numpy(), num_taken)[:, 2].astype(np.int64))


def _taken_rows(counts: torch.Tensor) -> np.ndarray:
    """[K]: how many rows each cluster gives so that no cluster stays empty, the currently largest giving next."""
    heap = [(-int(count), cluster) for cluster, count in enumerate(counts)]
    heapq.heapify(heap)
    num_taken = np.zeros(len(counts), np.int64)
    for _ in range(int((counts == 0).sum())):
        negative_count, cluster = heap[0]
        assert negative_count < -1, "fewer rows than clusters"
        num_taken[cluster] += 1
        heapq.heapreplace(heap, (negative_count + 1, cluster))
    return num_taken


def _first_of_each(rows: np.ndarray, num_taken: np.ndarray) -> np.ndarray:
    """The first rows (cluster, -distance, sample id) [m, 3] of each cluster in ascending order, as many as it gives."""
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    clusters = rows[:, 0].astype(np.int64)
    rank_in_cluster = np.arange(len(rows)) - np.searchsorted(clusters, clusters)
    return rows[rank_in_cluster < num_taken[clusters]]
