"""Rows that follow moving centroids: the assignments, sums and distances of a search of every row, at every step."""

from __future__ import annotations

import pytest
import torch

from dcdist.clustering.exact_sums import add_rows, fraction_bits
from dcdist.clustering.rows import Centroids, ShardedRows
from dcdist.clustering.search import nearest_centroids
from tests.clustering.ranks import normal

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("engine", ["torch", "faiss"])
@pytest.mark.parametrize("share_moving", [1.0, 0.5, 0.02], ids=["all move", "half move", "few move"])
def test_moving_centroids(share_moving: float, engine: str, num_devices: int) -> None:
    rows = normal(4000, 2)
    bits = fraction_bits(float(rows.abs().max()), len(rows))
    sharded = ShardedRows(rows, [CPU] * num_devices, 600, engine, bits)
    generator = torch.Generator().manual_seed(7)
    centroids = Centroids(rows[:600].clone())
    before = torch.full((4000,), -1, dtype=torch.int32)
    for step in range(25):
        num_changed = sharded.assign(centroids)
        expected, distances = nearest_centroids(rows, centroids.values)
        assert torch.equal(sharded.assignments(), expected), f"step {step}"
        assert num_changed == int((expected != before).sum())
        sums = torch.zeros(600, 2, dtype=torch.float64)
        add_rows(sums, rows, expected, bits)
        assert torch.equal(sharded.sums(), sums)
        assert torch.equal(sharded.distances(centroids.values), distances)
        before = expected
        steps = torch.randn(600, 2, generator=generator) * 0.01 * torch.rand(1, generator=generator)
        moving = torch.rand(600, 1, generator=generator) < share_moving
        centroids = Centroids(centroids.values + steps * moving, previous=centroids.values)


def test_rows_moved_by_force() -> None:
    rows = torch.zeros(7, 2)
    sharded = ShardedRows(rows, [CPU, CPU, CPU], 4, "torch", 10)
    sharded.assign(Centroids(torch.zeros(4, 2)))
    assert sharded.assignments().tolist() == [0] * 7
    sharded.move(torch.tensor([6, 1, 2]), torch.tensor([1, 2, 3]))
    assert sharded.assignments().tolist() == [0, 2, 3, 0, 0, 0, 1]


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_fewer_rows_than_devices(num_rows: int) -> None:
    rows = torch.ones(num_rows, 3)
    sharded = ShardedRows(rows, [CPU, CPU, CPU], 2, "torch", 10)
    centroids = Centroids(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    assert sharded.assign(centroids) == num_rows
    assert sharded.assignments().tolist() == [1] * num_rows
    assert sharded.distances(centroids.values).tolist() == [1.0] * num_rows
    assert sharded.sums().tolist() == [[0.0] * 3, [num_rows * 1024.0] * 3]
