"""Empty clusters: what refills them, and which rows are given to them."""

from __future__ import annotations

import torch

from dcdist.clustering.empty import farthest_rows, refill
from dcdist.distributed.collectives import Collectives


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_refill_splits_the_only_possible_donor() -> None:
    centroids = torch.tensor([[1.0, 2.0, -4.0], [9.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    counts = torch.tensor([7, 0, 1])
    assert refill(centroids, counts, generator()) == 1
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    assert centroids.tolist() == [[down, 2 * up, -4 * down], [up, 2 * down, -4 * up], [5.0, 5.0, 5.0]]
    assert counts.tolist() == [4, 3, 1]


def test_refill_many_from_one() -> None:
    centroids = torch.cat([torch.ones(1, 2), torch.zeros(9, 2)])
    counts = torch.tensor([100] + [0] * 9)
    assert refill(centroids, counts, generator()) == 9
    assert counts.sum() == 100
    assert counts.min() > 0
    assert (centroids - 1).abs().max() < 0.01


def test_refill_stops_where_no_donor_is_left() -> None:
    counts = torch.tensor([2, 1, 0, 0])
    assert refill(torch.ones(4, 2), counts, generator()) == 1
    assert counts.tolist() == [1, 1, 1, 0]


def test_refill_draws_by_size() -> None:
    sizes = torch.tensor([1, 11, 31, 0])
    donors = torch.zeros(4)
    for seed in range(2000):
        counts = sizes.clone()
        refill(torch.ones(4, 1), counts, generator(seed))
        donors[counts < sizes] += 1
    assert donors[0] == 0  # would leave an empty cluster itself
    torch.testing.assert_close(donors[1:3] / 2000, torch.tensor([0.25, 0.75]), rtol=0, atol=0.04)


def test_refill_is_the_same_for_the_same_generator() -> None:
    outcomes = []
    for seed in (3, 3, 4):
        centroids, counts = torch.arange(20.0).reshape(10, 2) + 1, torch.tensor([9, 0, 8, 0, 7, 0, 9, 0, 8, 0])
        refill(centroids, counts, generator(seed))
        outcomes.append(centroids)
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_farthest_rows_by_hand() -> None:
    assignments = torch.tensor([0, 0, 0, 1, 1, 1, 1, 4], dtype=torch.int32)
    distances = torch.tensor([5.0, 6.0, 1.0, 2.0, 9.0, 9.0, 0.0, 100.0])
    sample_ids = torch.tensor([10, 11, 12, 13, 15, 14, 16, 17])
    counts = torch.tensor([3, 4, 0, 0, 1, 0])
    # The largest gives first: cluster 1 (4 rows), then 0 (3, the lower index of two), then 1 (3); at a distance of 9
    # the lower sample id goes first. Cluster 4 keeps its only row.
    chosen = farthest_rows(assignments, distances, sample_ids, counts, Collectives())
    assert chosen.tolist() == [11, 14, 15]
