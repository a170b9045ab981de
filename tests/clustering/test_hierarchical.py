"""Two-level k-means: how clusters are shared out, that the result is one partition, that it is nearly as good."""

from __future__ import annotations

import pytest
import torch

from dcdist.clustering.hierarchical import HierarchicalKMeans, share_out
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.search import nearest_centroids
from dcdist.clustering.types import UNASSIGNED, FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError
from tests.clustering.ranks import mixture, normal


def fit(rows: torch.Tensor, clusterer: HierarchicalKMeans | KMeans, seed: int = 3) -> HeadClustering:
    shard = FeatureShard(torch.arange(len(rows)), rows)
    return clusterer.fit(shard, len(rows), Collectives(), torch.Generator().manual_seed(seed))


def test_shares_by_hand() -> None:
    # One each, then 7 more for 99, 49, 0 and 19 further rows of 167: 7 * 99 / 167 = 4 25/167, 2 9/167, 0, 133/167.
    # Six are whole; the seventh goes to the largest remainder, the last.
    assert share_out(torch.tensor([100, 50, 1, 20]), 11).tolist() == [5, 3, 1, 2]
    # Equal remainders: the lowest index.
    assert share_out(torch.tensor([10, 10, 10]), 5).tolist() == [2, 2, 1]


@pytest.mark.parametrize("num_clusters", [7, 8, 300, 1020, 1021])
def test_shares_stay_within_bounds(num_clusters: int) -> None:
    sizes = torch.tensor([1, 2, 3, 5, 10, 300, 700])
    shares = share_out(sizes, num_clusters)
    assert shares.sum() == num_clusters
    assert (shares >= 1).all()
    assert (shares <= sizes).all()


def test_thousands_of_clusters() -> None:
    rows = mixture(12_000, 32, 300)
    result = fit(rows, HierarchicalKMeans(KMeans(2500, num_iterations=8)))
    assert result.num_clusters == 2500
    assert result.assignments.dtype == torch.int32
    sizes = torch.bincount(result.assignments, minlength=2500)
    assert len(sizes) == 2500
    assert sizes.min() > 0
    own = (rows - result.centroids[result.assignments.long()]).square().sum(1)
    torch.testing.assert_close(result.distances, own, rtol=1e-4, atol=1e-5)
    assert result.objective == pytest.approx(float(own.mean()), rel=1e-5)
    assert result.objective < 1.05 * fit(rows, KMeans(2500, num_iterations=8)).objective
    # Most rows have no nearer centroid in another coarse cluster.
    assert (nearest_centroids(rows, result.centroids)[0] == result.assignments).float().mean() > 0.8


def test_a_coarse_cluster_for_each_and_one_for_all() -> None:
    rows = mixture(400, 4, 20)
    one = fit(rows, HierarchicalKMeans(KMeans(12), num_coarse=1))
    assert one.objective == pytest.approx(fit(rows, KMeans(12)).objective, rel=0.2)
    each = fit(rows, HierarchicalKMeans(KMeans(12), num_coarse=12))
    assert each.num_clusters == 12
    assert torch.bincount(each.assignments).min() > 0
    torch.testing.assert_close(nearest_centroids(rows, each.centroids)[0], each.assignments)  # level one's partition
    many = fit(rows, HierarchicalKMeans(KMeans(12), num_coarse=50))  # not more coarse ones than clusters
    assert torch.equal(many.centroids, each.centroids)


def test_clusters_of_a_coarse_one_are_consecutive() -> None:
    groups = torch.arange(60) // 20
    rows = 100 * normal(3, 4, seed=8)[groups] + normal(60, 4)
    result = fit(rows, HierarchicalKMeans(KMeans(9), num_coarse=3))
    members = [sorted(result.assignments[groups == group].unique().tolist()) for group in range(3)]
    assert sorted(members) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_as_many_clusters_as_rows_and_copies() -> None:
    rows = normal(30, 3)
    result = fit(rows, HierarchicalKMeans(KMeans(30)))
    assert sorted(result.assignments.tolist()) == list(range(30))
    assert result.objective < 1e-12
    copies = fit(rows[:5][torch.arange(100) % 5], HierarchicalKMeans(KMeans(40)))
    assert torch.bincount(copies.assignments, minlength=40).min() > 0


def test_samples_without_rows() -> None:
    shard = FeatureShard(torch.arange(100) * 2, mixture(100, 3, 9))
    result = HierarchicalKMeans(KMeans(16)).fit(shard, 300, Collectives(), torch.Generator())
    assert (result.assignments[1::2] == UNASSIGNED).all()
    assert result.distances[1::2].isnan().all()
    assert (result.assignments[shard.sample_ids] >= 0).all()


def test_options_reach_both_levels() -> None:
    rows = torch.nn.functional.normalize(mixture(300, 6, 20))
    result = fit(rows, HierarchicalKMeans(KMeans(20, spherical=True, initial="kmeans++", engine="faiss")))
    torch.testing.assert_close(result.centroids.norm(dim=1), torch.ones(20))


def test_too_few_rows() -> None:
    with pytest.raises(UsageError, match=r"clustering.num_clusters=31 needs .* here are 30.*at most 30"):
        fit(normal(30, 2), HierarchicalKMeans(KMeans(31)))
