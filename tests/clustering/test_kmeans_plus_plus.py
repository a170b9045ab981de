"""k-means++: probabilities by hand, scikit-learn's potential, draws that no split of the rows changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus

from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.kmeans_plus_plus import kmeans_plus_plus
from dcdist.clustering.search import nearest_centroids
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives
from tests.clustering.ranks import CASES, as_arrays, fit_case, mixture, normal

CPU = torch.device("cpu")


def draw(
    rows: torch.Tensor, num_clusters: int, seed: int = 0, sample_ids: torch.Tensor | None = None, **options: object
) -> torch.Tensor:
    shard = FeatureShard(torch.arange(len(rows)) if sample_ids is None else sample_ids, rows)
    generator = torch.Generator().manual_seed(seed)
    num_samples = int(shard.sample_ids.max()) + 1
    largest = float(rows.abs().max())
    return kmeans_plus_plus(shard, num_samples, len(rows), largest, num_clusters, Collectives(), generator, **options)  # type: ignore[arg-type]


def test_probabilities_by_hand() -> None:
    # From 0 the others are drawn with D^2 of 1, 4 and 9: probabilities 1/14, 4/14 and 9/14; from 3 with 9, 4 and 1.
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    counts = torch.zeros(4, 4)
    for seed in range(1200):
        first, second = draw(rows, 2, seed, num_trials=1).tolist()
        counts[first, second] += 1
    torch.testing.assert_close(counts.sum(1) / 1200, torch.full((4,), 0.25), rtol=0, atol=0.05)
    assert counts.diagonal().sum() == 0
    shares = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(shares[0, 1:], torch.tensor([1, 4, 9]) / 14, rtol=0, atol=0.1)
    torch.testing.assert_close(shares[3, :3], torch.tensor([9, 4, 1]) / 14, rtol=0, atol=0.1)


def test_of_many_candidates_the_best_is_taken() -> None:
    # From 0, a second row at 4 leaves D^2 of 1, 1 and 25, one at 5 leaves 1, 1 and 16, one at 9 leaves 1, 16 and 16.
    rows = torch.tensor([[0.0], [1.0], [4.0], [5.0], [9.0]])
    for seed in range(40):
        first, second = draw(rows, 2, seed, num_trials=200).tolist()
        potentials = [float(nearest_centroids(rows, rows[[first, other]])[1].sum()) for other in range(5)]
        assert potentials[second] == min(potentials)


def test_as_good_as_scikit_learn() -> None:
    rows = mixture(1500, 8, 40)

    def potential(chosen: torch.Tensor) -> float:
        return float(nearest_centroids(rows, rows[chosen])[1].mean())

    ours = [potential(draw(rows, 40, seed)) for seed in range(20)]
    theirs = [
        potential(torch.from_numpy(kmeans_plusplus(rows.numpy(), 40, random_state=seed)[1])) for seed in range(20)
    ]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.04)
    uniform = potential(torch.randperm(1500, generator=torch.Generator().manual_seed(0))[:40])
    assert max(ours) < 0.8 * uniform


def test_order_of_rows_and_devices_do_not_matter() -> None:
    rows, sample_ids = normal(400, 5) + 3, torch.arange(400) * 3 + 1
    expected = draw(rows, 30, sample_ids=sample_ids)
    assert len(expected.unique()) == 30
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    assert torch.equal(draw(rows[order], 30, sample_ids=sample_ids[order]), expected)
    assert torch.equal(draw(rows, 30, sample_ids=sample_ids, devices=(CPU, CPU, CPU)), expected)
    assert not torch.equal(draw(rows, 30, 1, sample_ids), expected)


def test_few_distinct_rows() -> None:
    rows = normal(4, 3)[torch.arange(40) % 4]
    chosen = draw(rows, 12)
    assert len(chosen.unique()) == 12
    assert sorted((chosen[:4] % 4).tolist()) == [0, 1, 2, 3]  # all that differ come first
    assert len(draw(torch.zeros(5, 2), 5).unique()) == 5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_magnitude(scale: float) -> None:
    rows = torch.round(normal(60, 4) * 1000)  # whole numbers: powers of two scale them without rounding
    power = 2.0 ** round(np.log2(scale))
    assert torch.equal(draw(rows * power, 10), draw(rows, 10))


def test_boundary_is_called_after_each_round() -> None:
    calls = []
    draw(normal(50, 2), 7, after_round=lambda: calls.append(1))
    assert len(calls) == 6


@pytest.mark.parametrize("name", ["mixture", "samples without rows", "spherical", "constant"])
def test_k_means_from_it(name: str) -> None:
    result = fit_case(Collectives(), name, "rank0", initial="kmeans++")
    changes = {"devices": (CPU,) * 3, "engine": "faiss"}
    for value, wanted in zip(
        as_arrays(fit_case(Collectives(), name, "rank0", initial="kmeans++", **changes)), as_arrays(result), strict=True
    ):
        np.testing.assert_array_equal(value, wanted)
    assert torch.bincount(result.assignments[CASES[name]()[1]]).min() > 0


def test_k_means_ends_lower() -> None:
    rows = mixture(2000, 8, 60)
    shard = FeatureShard(torch.arange(2000), rows)

    def objective(initial: str) -> float:
        kmeans = KMeans(60, initial=initial)  # type: ignore[arg-type]
        fits = [kmeans.fit(shard, 2000, Collectives(), torch.Generator().manual_seed(seed)) for seed in range(4)]
        return float(np.mean([result.objective for result in fits]))

    assert objective("kmeans++") < 0.9 * objective("random")
