"""Nearest neighbours against brute force in float64, ties and copies among them, by both engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dcdist.clustering import neighbors as module
from dcdist.clustering.neighbors import Neighbors, nearest_neighbors, neighbor_table
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError
from tests.clustering.ranks import mixture, normal

ENGINES = ("torch", "faiss")


def search(rows: torch.Tensor, num_neighbors: int, **options: object) -> Neighbors:
    shard = FeatureShard(torch.arange(len(rows)), rows)
    return nearest_neighbors(shard, num_neighbors, len(rows), Collectives(), **options)  # type: ignore[arg-type]


def brute_force(rows: torch.Tensor, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and squared distances, both [n, k], equally near ones by index."""
    distances = (rows.double().unsqueeze(1) - rows.double().unsqueeze(0)).square().sum(2).fill_diagonal_(torch.inf)
    ordered = distances.sort(dim=1, stable=True)
    return ordered.indices[:, :num_neighbors].numpy(), ordered.values[:, :num_neighbors].numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_hand_computed(engine: str) -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0], [1.0]])
    found = search(rows, 2, engine=engine)
    # 0: both 1 and 4 at 1; 1: its equal 4, then 0 at 1; 2: 1 and 4 at 4; 3: 2 at 16, then 1 at 36; 4: 1, then 0.
    assert found.indices.tolist() == [[1, 4], [4, 0], [1, 4], [2, 1], [1, 0]]
    assert found.distances.tolist() == [[1, 1], [0, 1], [4, 4], [16, 36], [0, 1]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("rows", "num_neighbors"),
    [
        (mixture(700, 16, 20), 5),
        (normal(300, 3), 20),
        (normal(40, 5), 39),
        (normal(400, 8) + 1e4, 5),  # in float32 the distances of order 1 are lost in squared lengths of 1e9
        (torch.tensor([[x, y] for x in range(16) for y in range(16)], dtype=torch.float32), 6),  # ties everywhere
        (normal(5, 3)[torch.arange(300) % 5], 7),  # 60 copies of each
        (torch.full((200, 3), 0.3), 4),
        (normal(100, 4) * 1e25, 3),  # squares overflow float32
    ],
    ids=["mixture", "normal", "all rows", "far from the origin", "grid", "copies", "constant", "huge"],
)
def test_brute_force(engine: str, rows: torch.Tensor, num_neighbors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_A_BLOCK", 90)  # several blocks, and pieces of the rows
    monkeypatch.setattr(module, "_ROWS_A_PIECE", 64)
    found = search(rows, num_neighbors, engine=engine)
    indices, distances = brute_force(rows, num_neighbors)
    np.testing.assert_array_equal(found.indices, indices)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found.distances, distances.astype(np.float32), rtol=1e-6)


def test_block_sizes_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.nn.functional.normalize(mixture(500, 12, 9))
    whole = search(rows, 10)
    monkeypatch.setattr(module, "_ROWS_A_BLOCK", 37)
    parts = search(rows, 10)
    assert torch.equal(parts.indices, whole.indices)
    assert torch.equal(parts.distances, whole.distances)


def test_sample_ids_and_table() -> None:
    shard = FeatureShard(torch.tensor([2, 3, 6]), torch.tensor([[0.0], [1.0], [5.0]]))
    found = nearest_neighbors(shard, 1, 8, Collectives())
    assert found.sample_ids.tolist() == [2, 3, 6]
    assert found.indices.tolist() == [[3], [2], [3]]
    assert neighbor_table(found, 8, Collectives()).tolist() == [[-1], [-1], [3], [2], [-1], [-1], [3], [-1]]


def test_boundary_is_called_after_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_A_BLOCK", 30)
    calls = []
    shard = FeatureShard(torch.arange(100), normal(100, 2))
    nearest_neighbors(shard, 3, 100, Collectives(), lambda: calls.append(1))
    assert len(calls) == 4


@pytest.mark.parametrize("num_neighbors", [0, 5])
def test_refusals(num_neighbors: int) -> None:
    expected = rf"num_neighbors={num_neighbors} needs more images.*here are 5: set .* at least 1 and at most 4"
    with pytest.raises(UsageError, match=expected):
        search(normal(5, 2), num_neighbors)
