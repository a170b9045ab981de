"""What goes into a clusterer and what comes out.

Shapes: N samples of the dataset, n of them on this rank, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dcdist.distributed.collectives import Collectives

UNASSIGNED = -1  # the assignment of a sample that has no features (an image that does not decode)


@dataclass(frozen=True)
class FeatureShard:
    """The rows of the feature matrix that one rank holds."""

    sample_ids: torch.Tensor  # [n] int64, ascending, disjoint over the ranks
    features: torch.Tensor  # [n, D] float32

    def __post_init__(self) -> None:
        assert self.features.ndim == 2
        assert self.sample_ids.shape == self.features.shape[:1]


@dataclass(frozen=True)
class HeadClustering:
    """One partition of the samples; a method with several heads has several."""

    assignments: torch.Tensor  # [N] int32, the same on every rank; UNASSIGNED where a sample had no features
    distances: torch.Tensor  # [N] float32, squared distance to the own centroid, the same on every rank; nan likewise
    centroids: torch.Tensor  # [K, D] float32
    objective: float  # sum of squared distances / number of assigned samples
    num_iterations: int
    num_empty_repaired: int
    placement: str
    seconds: dict[str, float] = field(default_factory=dict)  # of each phase
    linear: torch.Tensor | None = None  # [K, D + 1] where not centroids but a classifier decides: weights, biases last
    num_merged: int = 0  # clusters beyond the head's capacity that joined others, where the data decide K

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)


@dataclass(frozen=True)
class Clustering:
    """What one clustering step made: partitions, a head each, or each sample's neighbours."""

    heads: tuple[HeadClustering, ...]
    neighbors: torch.Tensor | None = None  # [N, k] int64 sample ids, nearest first; -1 where a sample has no features


class Clusterer(Protocol):
    """Partitions the rows of all ranks."""

    @property
    def least_rows(self) -> int:
        """Rows that `fit` needs."""
        ...

    def fit(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,
        at_boundary: Callable[[], None] = lambda: None,
    ) -> HeadClustering:
        """Collective. `at_boundary` is called equally often on every rank, between iterations; it may raise to stop."""
        ...
