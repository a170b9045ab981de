"""Nearest centroids against brute force in float64, bit-equal for every split, engine and precision of the process."""

from __future__ import annotations

import pytest
import torch

from dcdist.clustering.scores import FaissScores, TorchScores, full_precision
from dcdist.clustering.search import first_occurrences, nearest_centroids, squared_distances

ENGINES = ("torch", "faiss")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(rows: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    distances = (rows.double().unsqueeze(1) - centroids.double().unsqueeze(0)).square().sum(2)
    smallest = distances.min(1, keepdim=True).values
    return (distances == smallest).int().argmax(1).int(), smallest.squeeze(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_hand_computed(engine: str) -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    centroids = torch.tensor([[0.0, 1.0], [3.0, 3.0], [1.5, 0.0]])
    assignments, distances = nearest_centroids(rows, centroids, engine)
    assert assignments.tolist() == [0, 1, 2]
    assert assignments.dtype == torch.int32
    assert distances.tolist() == [1.0, 1.0, 0.25]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("num_rows", "num_clusters", "num_features"),
    [(1, 1, 1), (50, 1, 3), (300, 2, 3), (500, 129, 5), (100, 100, 1), (300, 1500, 7), (1500, 200, 64)],
)
def test_brute_force(engine: str, num_rows: int, num_clusters: int, num_features: int) -> None:
    rows, centroids = normal(num_rows, num_features), normal(num_clusters, num_features, seed=1)
    assignments, distances = nearest_centroids(rows, centroids, engine)
    expected, smallest = brute_force(rows, centroids)
    assert torch.equal(assignments, expected)
    torch.testing.assert_close(distances.double(), smallest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_go_to_the_lowest_index(engine: str) -> None:
    grid = torch.tensor([[x, y] for x in range(8) for y in range(8)], dtype=torch.float32)
    middles = grid + 0.5  # each is as near to four grid points
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    centroids = torch.cat([grid[order], grid[order]])  # and to their duplicates
    assignments, _ = nearest_centroids(middles, centroids, engine)
    expected, _ = brute_force(middles, centroids)
    assert torch.equal(assignments, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_far_from_the_origin_nothing_cancels(engine: str) -> None:
    # In float32 |x|^2 - 2 x.c + |c|^2 is a difference of 1e8s here, with the distances of order 1 lost in it.
    rows, centroids = normal(400, 16) + 1e4, normal(30, 16, seed=1) + 1e4
    assignments, distances = nearest_centroids(rows, centroids, engine)
    expected, smallest = brute_force(rows, centroids)
    assert torch.equal(assignments, expected)
    torch.testing.assert_close(distances.double(), smallest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_any_magnitude(scale: float) -> None:
    rows, centroids = normal(200, 8) * scale, normal(20, 8, seed=1) * scale
    expected, _ = brute_force(rows, centroids)
    assert torch.equal(nearest_centroids(rows, centroids)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_does_not_feel_the_split(engine: str) -> None:
    rows, centroids = normal(3000, 24), normal(300, 24, seed=1)
    rows[500:600] = rows[0]
    whole, distances = nearest_centroids(rows, centroids)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        cuts = torch.randint(1, 3000, (6,), generator=generator).sort().values.tolist()
        parts = [nearest_centroids(part, centroids, engine) for part in torch.tensor_split(rows, cuts)]
        assert torch.equal(torch.cat([assignments for assignments, _ in parts]), whole)
        assert torch.equal(torch.cat([squared for _, squared in parts]), distances)


def test_reduced_precision_of_the_process_is_kept_out() -> None:
    rows, centroids = normal(500, 300), normal(40, 300, seed=1)
    expected = nearest_centroids(rows, centroids)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        setting = torch.backends.mkldnn.matmul.fp32_precision
        found = nearest_centroids(rows, centroids)
        assert torch.backends.mkldnn.matmul.fp32_precision == setting
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("scores", [TorchScores, FaissScores])
@pytest.mark.parametrize(("num_features", "offset"), [(1, 0.0), (40, 0.0), (700, 0.0), (40, 30.0)])
def test_errors_stay_within_their_bound(scores: type, num_features: int, offset: float) -> None:
    rows, centroids = normal(600, num_features) + offset, normal(150, num_features, seed=1) + offset
    squared_norms = rows.double().square().sum(1)
    with full_precision():
        approximate = scores(centroids)
        found = approximate.top_two(rows, squared_norms.float())
        error = approximate.error(squared_norms.float()).double()
    exact = (rows.double().unsqueeze(1) - centroids.double()).square().sum(2).sort(1).values
    assert ((found.best.double() - exact[:, 0]).abs() <= error).all()
    assert ((found.second.double() - exact[:, 1]).abs() <= error).all()
    assert (error < 1e-3 * (squared_norms + 1)).all()  # a bound that holds by being huge would be no use


def test_no_rows() -> None:
    assignments, distances = nearest_centroids(torch.empty(0, 4), torch.ones(3, 4))
    assert assignments.shape == distances.shape == (0,)


def test_first_occurrences() -> None:
    centroids = torch.tensor([[1.0, 0.0], [2.0, 2.0], [1.0, -0.0], [3.0, 1.0], [2.0, 2.0]])
    assert first_occurrences(centroids).tolist() == [0, 1, 3]


def test_squared_distances_of_pairs() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    centroids = torch.tensor([[1.0, 0.0, 0.0], [4.0, 6.0, 3.0]])
    pairs = squared_distances(rows, centroids, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    assert pairs.tolist() == [13.0, 25.0, 61.0]
    assert pairs.dtype == torch.float64
