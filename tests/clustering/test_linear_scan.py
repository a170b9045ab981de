"""Linear heads on fixed rows: they find what neighbours share, the same on any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.linear_scan import LinearScan, linear_logits
from dcdist.clustering.types import FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.errors import Preempted, UsageError
from tests.clustering.ranks import normal, shard_of
from tests.distributed.processes import run_processes

NUM_ROWS = 240


def groups(num_groups: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of length 1 around as many corners, and whose each is."""
    which = torch.arange(NUM_ROWS) % num_groups
    rows = torch.eye(6)[which] + 0.15 * normal(NUM_ROWS, 6)
    return torch.nn.functional.normalize(rows), which


def fit(
    collectives: Collectives, num_clusters: int = 3, at_boundary: Any = lambda: None, **changes: Any
) -> HeadClustering:
    rows, _ = groups()
    shard = shard_of(rows, torch.arange(NUM_ROWS), collectives.rank, collectives.world_size)
    scan = LinearScan(num_clusters, **{"num_neighbors": 5, "num_heads": 8, "num_steps": 200, **changes})
    return scan.fit(shard, NUM_ROWS, collectives, torch.Generator().manual_seed(3), at_boundary)


def test_neighbours_share_a_cluster() -> None:
    _, which = groups()
    found = fit(Collectives())
    pairs = {(int(cluster), int(group)) for cluster, group in zip(found.assignments, which, strict=True)}
    assert len(pairs) == 3, "each group is a cluster"
    assert found.num_empty_repaired == 0
    for cluster in range(3):
        rows = groups()[0][found.assignments == cluster]
        torch.testing.assert_close(found.centroids[cluster], rows.mean(0))
    distances = (groups()[0] - found.centroids[found.assignments.long()]).square().sum(1)
    torch.testing.assert_close(found.distances, distances)
    assert found.objective == pytest.approx(float(distances.mean()), rel=1e-5)


def test_the_classifier_gives_the_assignments() -> None:
    found = fit(Collectives())
    assert found.linear is not None
    assert found.linear.shape == (3, 7)
    rows, _ = groups()
    assert torch.equal(linear_logits(rows, found.linear).argmax(1).int(), found.assignments)
    by_hand = rows @ found.linear[:, :6].T + found.linear[:, 6]
    torch.testing.assert_close(linear_logits(rows, found.linear), by_hand)


def test_it_follows_neighbours_where_kmeans_follows_variance() -> None:
    """Two strips: k-means cuts them in the middle, but neighbours lie along them."""
    along = torch.linspace(-1.7, 1.7, NUM_ROWS // 2)
    strips = torch.stack(
        [torch.cat([along, along]), torch.repeat_interleave(torch.tensor([-0.9, 0.9]), NUM_ROWS // 2)], 1
    )
    rows = torch.cat([strips, torch.zeros(NUM_ROWS, 2)], 1)
    shard = FeatureShard(torch.arange(NUM_ROWS), rows)
    found = LinearScan(2, num_neighbors=5).fit(shard, NUM_ROWS, Collectives(), torch.Generator().manual_seed(0))
    kmeans = KMeans(2).fit(shard, NUM_ROWS, Collectives(), torch.Generator().manual_seed(0))
    assert len(set(kmeans.assignments[: NUM_ROWS // 2].tolist())) == 2
    assert len(set(found.assignments[: NUM_ROWS // 2].tolist())) == 1
    assert len(set(found.assignments[NUM_ROWS // 2 :].tolist())) == 1
    assert found.assignments[0] != found.assignments[-1]


def test_empty_clusters_get_a_row() -> None:
    found = fit(Collectives(), num_clusters=40, num_steps=20, entropy_weight=1e-6)
    assert found.num_empty_repaired > 0
    assert (torch.bincount(found.assignments, minlength=40) > 0).all()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="needs at least as many images"):
        fit(Collectives(), num_clusters=NUM_ROWS + 1)
    with pytest.raises(UsageError, match="num_neighbors=240"):
        fit(Collectives(), num_neighbors=NUM_ROWS)


def on_ranks(collectives: Collectives) -> list[np.ndarray]:
    """A fit, and another that is interrupted at its third boundary and then repeated."""
    calls = [0]

    def at_boundary() -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise Preempted("make room")

    with pytest.raises(Preempted):
        fit(collectives, at_boundary=at_boundary)
    assert calls == [3]
    whole, repeated = fit(collectives), fit(collectives)
    assert whole.linear is not None
    assert repeated.linear is not None
    assert torch.equal(whole.linear, repeated.linear)
    return [whole.assignments.numpy(), whole.distances.numpy(), whole.centroids.numpy(), whole.linear.numpy()]


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_gives_the_same(world_size: int) -> None:
    expected = on_ranks(Collectives())
    for rank in run_processes(on_ranks, world_size):
        for own, value in zip(rank, expected, strict=True):
            np.testing.assert_array_equal(own, value)
