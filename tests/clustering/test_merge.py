"""Merging clusters by Ward's rule: cases by hand, and agreement with scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import AgglomerativeClustering

from dcdist.clustering.merge import merge_clusters
from dcdist.errors import UsageError


def merge(centroids: list[list[float]], sizes: list[int], num_merged: int) -> list[int]:
    merged = merge_clusters(torch.tensor(centroids), torch.tensor(sizes), num_merged)
    assert merged.dtype == torch.int32
    return merged.tolist()


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def test_neighbours_are_merged_and_numbered_by_size() -> None:
    assert merge([[0.0], [10.0], [0.1], [10.2], [5.0]], [1, 4, 1, 4, 3], 3) == [2, 0, 2, 0, 1]


def test_weight_decides_not_distance_alone() -> None:
    # Joining the near heavy pair costs 100 * 100 / 200 * 1 = 50, the far light one 1 / 2 * 9 = 4.5.
    assert merge([[0.0], [1.0], [20.0], [23.0]], [100, 100, 1, 1], 3) == [0, 1, 2, 2]
    assert merge([[0.0], [1.0], [20.0], [23.0]], [1, 1, 1, 1], 3) == [0, 0, 1, 2]


def test_a_merged_cluster_goes_on_from_its_weighted_mean() -> None:
    # 0 and 4 join at cost 3 / 4 * 16 = 12; their weighted mean is 1, from which 9 is 4 / 5 * 64 = 51.2 away. So 9 joins
    # 18.5 at 1 / 2 * 90.25 = 45.1; from the unweighted mean 2 it would be 4 / 5 * 49 = 39.2, and join that.
    assert merge([[0.0], [4.0], [9.0], [18.5]], [3, 1, 1, 1], 2) == [0, 0, 1, 1]


def test_all_and_nothing() -> None:
    centroids = [[0.0], [1.0], [5.0]]
    assert merge(centroids, [1, 3, 2], 3) == [2, 0, 1]
    assert merge(centroids, [1, 3, 2], 1) == [0, 0, 0]


def test_equal_sizes_are_numbered_by_the_lowest_id() -> None:
    assert merge([[0.0], [9.0], [0.0], [9.0]], [1, 1, 1, 1], 2) == [0, 1, 0, 1]


def test_empty_clusters_join_their_nearest_before_any_others() -> None:
    # The empty ones lie at 9.6 and 0.2; members are 0 and 0.3 and 10, and nothing else is joined.
    assert merge([[0.0], [9.6], [0.3], [10.0], [0.2]], [4, 0, 3, 5, 0], 3) == [1, 0, 2, 0, 2]


def test_duplicates_are_merged_first() -> None:
    rows = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    merged = merge_clusters(rows.repeat(4, 1), torch.ones(20, dtype=torch.int64), 5)
    for index in range(5):
        assert len(set(merged[index::5].tolist())) == 1
    assert len(set(merged.tolist())) == 5


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_ward_linkage_of_each_centroid_repeated_as_often_as_its_size(seed: int) -> None:
    generator = np.random.default_rng(seed)
    centroids = generator.normal(size=(40, 5)).astype(np.float32)
    sizes = generator.integers(1, 12, size=40)
    points = np.repeat(centroids.astype(np.float64), sizes, axis=0)
    first = np.cumsum(sizes) - sizes  # a point of each centroid
    tree = linkage(points, "ward")
    for num_merged in (2, 5, 17, 39):
        merged = merge_clusters(torch.from_numpy(centroids), torch.from_numpy(sizes), num_merged).numpy()
        by_scipy = fcluster(tree, num_merged, "maxclust")[first]
        by_sklearn = AgglomerativeClustering(num_merged, linkage="ward").fit_predict(points)[first]
        assert partition(merged) == partition(by_scipy) == partition(by_sklearn)
        totals = np.bincount(merged, weights=sizes)
        assert len(totals) == num_merged
        assert (np.diff(totals) <= 0).all(), "numbered by decreasing size"


@pytest.mark.parametrize("num_merged", [0, 4])
def test_a_number_out_of_range_is_refused(num_merged: int) -> None:
    with pytest.raises(
        UsageError, match=f"cannot merge 3 clusters to {num_merged}: readout.merge_to must lie between 1"
    ):
        merge_clusters(torch.zeros(3, 2), torch.ones(3), num_merged)
