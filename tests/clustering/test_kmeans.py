"""k-means against hand-computed cases, faiss, scikit-learn and its own promises."""

from __future__ import annotations

import itertools

import faiss
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ReferenceKMeans

from dcdist.clustering.kmeans import KMeans, choose_placement
from dcdist.clustering.search import CentroidSearch, Nearest, nearest_centroids
from dcdist.clustering.types import UNASSIGNED, FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from tests.clustering.ranks import CASES, as_arrays, fit_case, growth_while_clustering, mixture, normal
from tests.distributed.processes import run_processes


def fit(rows: torch.Tensor, kmeans: KMeans, initial: torch.Tensor | None = None, seed: int = 11) -> HeadClustering:
    shard = FeatureShard(torch.arange(len(rows)), rows)
    generator = torch.Generator().manual_seed(seed)
    return kmeans.fit(shard, len(rows), Collectives(), generator, initial_centroids=initial)


def test_hand_computed() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [15.0]])
    result = fit(rows, KMeans(2, num_iterations=1), torch.tensor([[0.0], [2.5]]))
    # First assignment 0 0 | 2 10 11 15 (2 lies nearer to 2.5), means 0.5 and 9.5; then 2 goes to the first.
    assert result.centroids.tolist() == [[0.5], [9.5]]
    assert result.assignments.tolist() == [0, 0, 0, 1, 1, 1]
    assert result.distances.tolist() == [0.25, 0.25, 2.25, 0.25, 2.25, 30.25]
    assert result.objective == pytest.approx(35.5 / 6, rel=1e-14)
    assert result.num_iterations == 1
    result = fit(rows, KMeans(2), torch.tensor([[0.0], [2.5]]))
    assert result.centroids.tolist() == [[1.0], [12.0]]
    assert result.num_iterations == 2  # the third search changes nothing
    assert (result.placement, result.num_empty_repaired) == ("rank0", 0)


def test_spherical_hand_computed() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    result = fit(rows, KMeans(2, spherical=True), torch.tensor([[2.0, 1.0], [-3.0, 0.0]]))
    torch.testing.assert_close(
        result.centroids, torch.tensor([[0.8, 0.4], [-1.0, 0.0]]) / torch.tensor([[0.8**0.5], [1.0]])
    )
    assert result.assignments.tolist() == [0, 0, 1]


@pytest.mark.parametrize("num_iterations", [1, 12])
def test_agrees_with_faiss(num_iterations: int) -> None:
    rows = mixture(3000, 16, 60)
    initial = rows[:50].clone()
    reference = faiss.Clustering(16, 50)
    reference.niter, reference.max_points_per_centroid, reference.min_points_per_centroid = num_iterations, 10**7, 1
    faiss.copy_array_to_vector(initial.numpy().ravel(), reference.centroids)
    index = faiss.IndexFlatL2(16)
    reference.train(rows.numpy(), index)
    centroids = faiss.vector_to_array(reference.centroids).reshape(50, 16)
    distances, assignments = index.search(rows.numpy(), 1)
    result = fit(rows, KMeans(50, num_iterations), initial)
    np.testing.assert_array_equal(result.assignments, assignments[:, 0])
    np.testing.assert_allclose(result.centroids, centroids, atol=1e-5)
    assert result.objective == pytest.approx(float(distances.astype(np.float64).mean()), rel=1e-5)


@pytest.mark.parametrize("num_iterations", [1, 12])
def test_agrees_with_scikit_learn(num_iterations: int) -> None:
    rows = mixture(3000, 16, 60, seed=5)
    initial = rows[:50].clone()
    reference = ReferenceKMeans(50, init=initial.numpy(), n_init=1, max_iter=num_iterations, tol=0, algorithm="lloyd")
    reference.fit(rows.numpy())
    result = fit(rows, KMeans(50, num_iterations), initial)
    np.testing.assert_array_equal(result.assignments, reference.labels_)
    np.testing.assert_allclose(result.centroids, reference.cluster_centers_, atol=1e-5)
    assert result.objective == pytest.approx(reference.inertia_ / 3000, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "searched_share"),
    [(normal(6000, 3), 0.8), (mixture(6000, 8, 150), 0.8), (normal(6000, 24), 1.0)],
    ids=["few features", "many modes", "nothing to save"],
)
def test_rows_left_out_of_the_search_would_have_kept_their_centroid(
    rows: torch.Tensor, searched_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    centroids = rows[:300].clone()
    for _ in range(20):
        assignments = nearest_centroids(rows, centroids)[0].long()
        sums = torch.zeros_like(centroids, dtype=torch.float64).index_add_(0, assignments, rows.double())
        counts = torch.bincount(assignments, minlength=300)
        assert counts.all()
        centroids = (sums / counts.unsqueeze(1)).float()
    num_searched = 0
    search = CentroidSearch.search

    def counting(self: CentroidSearch, rows: torch.Tensor, squared_norms: torch.Tensor) -> Nearest:
        nonlocal num_searched
        num_searched += len(rows)
        return search(self, rows, squared_norms)

    monkeypatch.setattr(CentroidSearch, "search", counting)
    result = fit(rows, KMeans(300, 20), rows[:300])
    assert num_searched <= searched_share * 21 * len(rows)
    torch.testing.assert_close(result.centroids, centroids, rtol=0, atol=1e-6)
    assert torch.equal(result.assignments, nearest_centroids(rows, result.centroids)[0])


@pytest.mark.parametrize(
    "changes", [{"devices": (torch.device("cpu"),) * 3}, {"engine": "faiss"}, {"placement": "distributed"}]
)
@pytest.mark.parametrize("name", CASES)
def test_devices_and_engines_give_the_same_bits(name: str, changes: dict[str, object]) -> None:
    expected = as_arrays(fit_case(Collectives(), name, "rank0"))
    found = as_arrays(fit_case(Collectives(), name, **{"placement": "rank0", **changes}))  # type: ignore[arg-type]
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_order_of_rows_does_not_matter() -> None:
    rows, initial = mixture(2000, 10, 40), mixture(30, 10, 40, seed=9)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(4))
    expected, found = fit(rows, KMeans(30), initial), fit(rows[order], KMeans(30), initial)
    assert torch.equal(found.centroids, expected.centroids)
    assert torch.equal(found.assignments, expected.assignments[order])
    assert found.objective == expected.objective


@pytest.mark.parametrize("name", CASES)
def test_result_is_consistent(name: str) -> None:
    rows, sample_ids, num_samples, arguments = CASES[name]()
    result = fit_case(Collectives(), name, "rank0")
    num_clusters = arguments["num_clusters"]
    assert result.num_clusters == num_clusters
    assert result.assignments.dtype == torch.int32
    assert result.assignments.shape == result.distances.shape == (num_samples,)
    absent = torch.ones(num_samples, dtype=torch.bool)
    absent[sample_ids] = False
    assert (result.assignments[absent] == UNASSIGNED).all()
    assert result.distances[absent].isnan().all()
    counts = torch.bincount(result.assignments[sample_ids], minlength=num_clusters)
    assert len(counts) == num_clusters
    assert counts.min() > 0
    # Every row lies as near to its centroid as to any (ties are broken by force only to fill empty clusters).
    distances = (rows.double().unsqueeze(1) - result.centroids.double()).square().sum(2)
    own = distances.gather(1, result.assignments[sample_ids].long().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(own, distances.min(1).values, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.distances[sample_ids].double(), own, rtol=1e-6, atol=1e-12)
    assert result.objective == pytest.approx(float(own.mean()), rel=1e-6, abs=1e-12)


def test_a_new_row_goes_where_an_equal_one_went() -> None:
    rows = mixture(1000, 8, 30)
    result = fit(rows, KMeans(40))
    assert torch.equal(nearest_centroids(rows, result.centroids)[0], result.assignments)


def test_as_many_clusters_as_rows() -> None:
    result = fit_case(Collectives(), "as many clusters as rows", "rank0")
    assert sorted(result.assignments.tolist()) == list(range(40))
    assert result.objective < 1e-12


def test_one_cluster() -> None:
    rows = mixture(500, 4, 9)
    result = fit(rows, KMeans(1))
    torch.testing.assert_close(result.centroids[0], rows.double().mean(0).float())
    assert result.objective == pytest.approx(float((rows.double() - rows.double().mean(0)).square().sum(1).mean()))
    assert result.num_iterations == 1


def test_empty_clusters_are_refilled_and_help() -> None:
    """Ten centroids at one place far from all rows: without refilling, nine of them would never get a row."""
    rows = mixture(2000, 5, 10)
    initial = torch.cat([torch.full((9, 5), 50.0), rows[:1]])
    result = fit(rows, KMeans(10, 30), initial)
    assert torch.bincount(result.assignments, minlength=10).min() > 10
    fair = fit(rows, KMeans(10, 30), rows[:10])
    assert result.objective < 1.5 * fair.objective


def test_random_rows_to_start_from_are_distinct_and_depend_on_the_generator_alone() -> None:
    rows = normal(200, 3)
    first, again, other = (fit(rows, KMeans(20, 0), seed=seed).centroids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    matches = (first.unsqueeze(1) == rows).all(2)
    assert (matches.sum(1) == 1).all()  # each is a row
    assert matches.sum(0).max() == 1  # none twice


def test_objective_never_rises() -> None:
    rows = mixture(1500, 8, 40)
    objectives = [fit(rows, KMeans(40, num_iterations), rows[:40]).objective for num_iterations in range(8)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(objectives))
    assert objectives[-1] < 0.9 * objectives[0]


def test_boundary_is_called_after_each_iteration() -> None:
    calls = []
    shard = FeatureShard(torch.arange(500), normal(500, 4))
    kmeans = KMeans(20, num_iterations=5)
    result = kmeans.fit(shard, 500, Collectives(), torch.Generator(), lambda: calls.append(1))
    assert len(calls) == result.num_iterations == 5


def test_placement() -> None:
    assert choose_placement(10**9, 256, 1.0, 1) == ("rank0", "there is one process")
    placement, reason = choose_placement(1_000_000, 256, 1.0, 8)
    assert placement == "rank0"
    assert "1,000,000 rows of 256 float32 features are 0.954 GiB, within clustering.gather_limit_gib=1" in reason
    placement, reason = choose_placement(1_100_000, 256, 1.0, 8)
    assert placement == "distributed"
    assert "1.05 GiB, more than clustering.gather_limit_gib=1" in reason


def test_rank_zero_of_distributed_holds_no_matrix_of_all_rows() -> None:
    """The rows of the other rank are 384 MiB; a library that allocates for the first time takes tens of them."""
    assert 0 <= run_processes(growth_while_clustering, 2, "distributed")[0] < 250
    assert run_processes(growth_while_clustering, 2, "rank0")[0] > 384
