"""What happens to the rows at the beginning of an epoch: partitions, a head each, or neighbours.

Shapes: N samples of the dataset, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dcdist.clustering.neighbors import nearest_neighbors, neighbor_table
from dcdist.clustering.types import Clusterer, Clustering, FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator


class ClusteringStep(Protocol):
    """Makes of the rows what a method adopts."""

    def fit(
        self,
        shards: Sequence[FeatureShard],
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,
        at_boundary: Callable[[], None],
    ) -> Clustering:
        """Of this rank's rows, in one or more versions (a bank has one for each view). Collective."""
        ...


@dataclass(frozen=True)
class HeadsStep:
    """A clusterer for each head; head h has version h, h modulo the number of versions, as DeepCluster-v2 has it."""

    clusterers: tuple[Clusterer, ...]

    def fit(
        self,
        shards: Sequence[FeatureShard],
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,
        at_boundary: Callable[[], None],
    ) -> Clustering:
        """Fits the heads one after another."""
        heads = []
        for head, clusterer in enumerate(self.clusterers):
            if head:  # ranks that only wait draw nothing: each head has a generator that all know
                generator = torch_generator(generator.initial_seed(), "head", head)
            heads.append(clusterer.fit(shards[head % len(shards)], num_samples, collectives, generator, at_boundary))
        return Clustering(tuple(heads))


@dataclass(frozen=True)
class NeighborsStep:
    """The nearest rows of each row, the row itself left out."""

    num_neighbors: int
    device: torch.device

    def fit(
        self,
        shards: Sequence[FeatureShard],
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,  # noqa: ARG002 (nothing is drawn)
        at_boundary: Callable[[], None],
    ) -> Clustering:
        """Exact neighbours by the distance of rows of length 1, which orders as the inner product does."""
        (shard,) = shards
        found = nearest_neighbors(shard, self.num_neighbors, num_samples, collectives, at_boundary, device=self.device)
        return Clustering((), neighbor_table(found, num_samples, collectives))
