"""What happens at the beginning of an epoch: which rows each head clusters, and neighbours by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.steps import HeadsStep, NeighborsStep
from dcdist.clustering.types import FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives


class Recorder:
    """Notes what it is asked to cluster; draws as many numbers as it is told to."""

    def __init__(self, num_draws: int) -> None:
        self.num_draws = num_draws
        self.shard: FeatureShard | None = None
        self.drawn = torch.empty(0)

    def fit(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,  # noqa: ARG002
        generator: torch.Generator,
        at_boundary: Callable[[], None] = lambda: None,
    ) -> HeadClustering:
        self.shard = shard
        self.drawn = torch.rand(self.num_draws, generator=generator)
        at_boundary()
        nothing = torch.zeros(num_samples)
        return HeadClustering(nothing.int(), nothing, torch.zeros(1, 1), float(self.num_draws), 1, 0, "rank0")


def shard(value: float) -> FeatureShard:
    return FeatureShard(torch.arange(4), torch.full((4, 2), value))


def fit(num_draws: tuple[int, ...], shards: tuple[FeatureShard, ...], seed: int = 3) -> tuple[list[Recorder], Any]:
    clusterers = [Recorder(count) for count in num_draws]
    calls: list[int] = []
    generator = torch.Generator().manual_seed(seed)
    found = HeadsStep(tuple(clusterers)).fit(shards, 4, Collectives(), generator, lambda: calls.append(1))
    assert len(calls) == len(clusterers)
    return clusterers, found


def test_head_h_clusters_version_h_modulo_their_number() -> None:
    shards = (shard(0.0), shard(1.0))
    clusterers, found = fit((5, 6, 7), shards)
    assert [clusterer.shard is shards[number % 2] for number, clusterer in enumerate(clusterers)] == [True] * 3
    assert [head.objective for head in found.heads] == [5.0, 6.0, 7.0]
    assert found.neighbors is None


def test_each_head_draws_from_a_generator_of_its_own_however_much_the_others_draw() -> None:
    one = (shard(0.0),)
    clusterers, _ = fit((4, 4, 4), one)
    drawn = [clusterer.drawn for clusterer in clusterers]
    assert torch.equal(drawn[0], torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 3
    others, _ = fit((0, 100, 4), one)
    assert torch.equal(others[2].drawn, drawn[2])
    assert torch.equal(others[1].drawn[:4], drawn[1])
    reseeded, _ = fit((4, 4, 4), one, seed=4)
    assert not any(torch.equal(a.drawn, b) for a, b in zip(reseeded, drawn, strict=True))


def test_several_numbers_of_clusters_of_the_same_rows() -> None:
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    step = HeadsStep((KMeans(4), KMeans(7), KMeans(4)))
    found = step.fit(
        (FeatureShard(torch.arange(60), rows),), 60, Collectives(), torch.Generator().manual_seed(1), lambda: None
    )
    assert [head.num_clusters for head in found.heads] == [4, 7, 4]
    assert not torch.equal(found.heads[0].centroids, found.heads[2].centroids), "started from other rows"


def test_neighbours_by_hand_the_row_itself_left_out() -> None:
    # Angles of 0, 10, 25, 90 and 100 degrees; samples 1 and 4 of seven have no features.
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 25.0, 90.0, 100.0]))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = NeighborsStep(2, torch.device("cpu")).fit(
        (FeatureShard(torch.tensor([0, 2, 3, 5, 6]), rows),), 7, Collectives(), torch.Generator(), lambda: None
    )
    assert found.heads == ()
    assert found.neighbors is not None
    assert found.neighbors.tolist() == [[2, 3], [-1, -1], [0, 3], [2, 0], [-1, -1], [6, 3], [5, 3]]
