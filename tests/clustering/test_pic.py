"""Power iteration clustering: a graph worked out by hand, a plain implementation, obvious groups, too many clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dcdist.clustering.pic import (
    PowerIterationClustering,
    follow_to_roots,
    join_singletons,
    merge_smallest,
    neighbor_graph,
    walk,
)
from dcdist.clustering.types import UNASSIGNED, FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError
from tests.clustering.ranks import mixture, normal


def fit(rows: torch.Tensor, **options: float) -> HeadClustering:
    shard = FeatureShard(torch.arange(len(rows)), rows)
    return PowerIterationClustering(**options).fit(shard, len(rows), Collectives(), torch.Generator())  # type: ignore[arg-type]


def test_six_nodes_by_hand() -> None:
    # Edges i -> j (weights): 0 -> 1 (1/2), 1 -> 2 (1/4), 2 -> 0 (1/8), 3 -> 4 (1/2), 4 -> 2 (1/8), 5 -> 3 (0, so far).
    neighbors = np.array([[1], [2], [0], [4], [2], [3]])
    squared = np.log(np.array([[2.0], [4.0], [8.0], [2.0], [8.0], [1.0]]))
    squared[5] = 1e4
    graph = neighbor_graph(neighbors, squared, sigma=1.0)
    eighths = [
        [0, 4, 1, 0, 0, 0],
        [4, 0, 2, 0, 0, 0],
        [1, 2, 0, 0, 1, 0],
        [0, 0, 0, 0, 4, 0],
        [0, 0, 1, 4, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(graph.toarray() * 8, eighths, atol=1e-12)
    # Degrees are 5, 6, 4, 4, 5, 0 eighths. With alpha 1/2 one step from 1/6 gives (degree + 1) / 12, in eighths of
    # that 13, 14, 12, 12, 13, 8, whose sum is 72.
    mass = walk(graph, np.full(6, 1 / 6), 0.5, 1)
    np.testing.assert_allclose(mass, np.array([13, 14, 12, 12, 13, 8]) / 72)
    # w (v_j - v_i): node 0 gains 4 * 1 from 1. Node 2 gains 2 * 2 from 1, 1 * 1 from 0 and from 4. Node 3 gains 4 * 1
    # from 4. Nodes 1 and 4 have no neighbour with more mass, node 5 none that it is tied to.
    roots = follow_to_roots(graph, mass)
    assert roots.tolist() == [1, 1, 1, 4, 4, 5]
    # Node 5 is alone; its nearest neighbour, 3, is not.
    assert join_singletons(roots, neighbors).tolist() == [1, 1, 1, 4, 4, 4]


def test_a_second_step_by_hand() -> None:
    # Two nodes, W = [[0, 1], [1, 0]] + a third one tied to the first alone by 1: degrees 2, 1, 1.
    graph = neighbor_graph(np.array([[1], [0], [0]]), np.array([[math.log(2)], [math.log(2)], [0.0]]), 1.0)
    np.testing.assert_allclose(graph.toarray(), [[0, 1, 1], [1, 0, 0], [1, 0, 0]])
    # alpha 1/2: 1/3 (2 1 1)/2 + 1/6 = (3 2 2)/6, scaled (3 2 2)/7; W v = (4 3 3)/7, v = (4 3 3)/14 + 1/6 =
    # (19 16 16)/42, whose sum is 51/42.
    np.testing.assert_allclose(walk(graph, np.full(3, 1 / 3), 0.5, 2), np.array([19, 16, 16]) / 51)


def test_paths_are_followed_to_their_end() -> None:
    neighbors = np.array([[1], [2], [3], [4], [3], [4]])  # a path 0 - 1 - 2 - 3 - 4 - 5
    graph = neighbor_graph(neighbors, np.ones((6, 1)), 1.0)
    assert follow_to_roots(graph, np.array([1.0, 2, 3, 4, 5, 6])).tolist() == [5] * 6
    assert follow_to_roots(graph, np.array([6.0, 5, 1, 2, 3, 4])).tolist() == [0, 0, 0, 5, 5, 5]
    assert follow_to_roots(graph, np.ones(6)).tolist() == [0, 1, 2, 3, 4, 5]


def test_singletons_among_singletons_stay() -> None:
    roots = np.array([0, 0, 2, 3, 4])
    neighbors = np.array([[1, 2], [0, 2], [3, 1], [2, 4], [3, 2]])
    assert join_singletons(roots, neighbors).tolist() == [0, 0, 0, 3, 4]


def plain(rows: np.ndarray, num_neighbors: int, sigma: float, num_iterations: int, alpha: float) -> list[set[int]]:
    """The same clusters from loops over dense matrices."""
    num_rows = len(rows)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(2)
    np.fill_diagonal(squared, np.inf)
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :num_neighbors]
    adjacency = np.zeros((num_rows, num_rows))
    for node, others in enumerate(nearest):
        adjacency[node, others] = np.exp(-squared[node, others] / sigma**2)
    weights = adjacency + adjacency.T
    mass = np.full(num_rows, 1 / num_rows)
    for _ in range(num_iterations):
        mass = alpha * weights.T @ mass + (1 - alpha) / num_rows
        mass /= np.abs(mass).sum()
    roots = []
    for start in range(num_rows):
        node = start
        while (gains := weights[node] * (mass - mass[node])).max() > 0:
            node = int(gains.argmax())
        roots.append(node)
    clusters = {root: {node for node in range(num_rows) if roots[node] == root} for root in roots}
    sizes = {root: len(members) for root, members in clusters.items()}
    for root in [root for root, size in sizes.items() if size == 1]:
        other = next((other for other in nearest[root] if sizes[roots[other]] > 1), None)
        if other is not None:
            clusters[roots[other]] |= clusters.pop(root)
    return sorted(clusters.values(), key=lambda members: (-len(members), min(members)))


@pytest.mark.parametrize(("num_neighbors", "sigma"), [(5, 0.2), (2, 0.5), (12, 1.0)])
def test_agrees_with_a_plain_implementation(num_neighbors: int, sigma: float) -> None:
    rows = torch.nn.functional.normalize(mixture(300, 6, 8))
    result = fit(rows, num_neighbors=num_neighbors, sigma=sigma)
    expected = plain(rows.double().numpy(), num_neighbors, sigma, 200, 0.001)
    found = [set(np.flatnonzero(result.assignments.numpy() == cluster)) for cluster in range(result.num_clusters)]
    assert found == expected
    assert 5 < len(found) < 150


def test_obvious_groups() -> None:
    # Five neighbours in a group of six are the whole group: the graph of a group is complete, with one mode.
    modes = torch.nn.functional.normalize(normal(4, 8))
    which = torch.arange(24) % 4
    rows = modes[which] + 0.01 * normal(24, 8, seed=1)
    result = fit(rows)
    assert result.num_clusters == 4
    assert result.assignments.tolist() == which.tolist()  # equally large: in the order of their first members
    for cluster in range(4):
        torch.testing.assert_close(result.centroids[cluster], rows[which == cluster].mean(0))
    expected = (rows - result.centroids[which]).square().sum(1)
    torch.testing.assert_close(result.distances, expected)
    assert result.objective == pytest.approx(float(expected.mean()), rel=1e-5)
    assert (result.num_iterations, result.num_empty_repaired, result.placement) == (200, 0, "distributed")


def test_samples_without_rows() -> None:
    shard = FeatureShard(torch.arange(12) * 3, torch.nn.functional.normalize(normal(12, 4)))
    result = PowerIterationClustering(num_neighbors=3).fit(shard, 40, Collectives(), torch.Generator())
    absent = torch.ones(40, dtype=torch.bool)
    absent[shard.sample_ids] = False
    assert (result.assignments[absent] == UNASSIGNED).all()
    assert result.distances[absent].isnan().all()
    assert (result.assignments[~absent] >= 0).all()


def test_smallest_join_the_nearest_of_the_largest() -> None:
    centroids = torch.tensor([[0.0], [10.0], [20.0], [19.0], [9.0]])
    sizes = torch.tensor([9, 8, 7, 5, 1])
    # Three are kept; 19 joins 20 (12 rows then, the largest), 9 joins 10 (9 rows, as many as cluster 0, after it).
    assert merge_smallest(centroids, sizes, 3).tolist() == [1, 2, 0, 0, 2]


def test_more_clusters_than_the_head_has_room_for() -> None:
    rows = torch.nn.functional.normalize(mixture(300, 6, 8))
    every, few = fit(rows), fit(rows, max_clusters=10)
    assert every.num_clusters > 10
    assert few.num_clusters == 10
    sizes = torch.bincount(few.assignments, minlength=10)
    assert sizes.sum() == 300
    assert (sizes[:-1] >= sizes[1:]).all()
    for cluster in range(every.num_clusters):  # whole clusters are merged
        assert len(few.assignments[every.assignments == cluster].unique()) == 1
    for cluster in range(10):
        torch.testing.assert_close(few.centroids[cluster], rows[few.assignments == cluster].mean(0))
    assert few.objective > every.objective


def test_not_more_rows_than_neighbours() -> None:
    with pytest.raises(UsageError, match=r"num_neighbors=5 needs more images.*here are 5.*at most 4"):
        fit(normal(5, 2))
