"""Gaussian mixtures by expectation maximisation over the rows of all ranks, which stay where they are.

Shapes: N rows on all ranks, n of them on this one, b of a block, D features, K components, S samples of the dataset.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from dcdist.clustering.empty import farthest_rows
from dcdist.clustering.expectation_maximization import MixtureRows, blocks_of
from dcdist.clustering.initial import local_positions, take_rows
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.mixture import Covariance, MixtureParameters
from dcdist.clustering.partition import (
    cluster_sizes,
    count_rows,
    everywhere,
    largest_magnitude,
    mean_distance,
    require_rows,
)
from dcdist.clustering.search import squared_distances
from dcdist.clustering.types import FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives


@dataclass(frozen=True)
class MixtureFit:
    """A fitted mixture and how the fit went."""

    parameters: MixtureParameters
    log_likelihood: float  # mean over the rows, of the parameters before the last update
    num_iterations: int


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians fitted by expectation maximisation; a `Clusterer`.

    Dempster, Laird & Rubin (1977), as scikit-learn's GaussianMixture with covariance_type "diag" or "tied". Ranks share
    float64 sums over their rows, whose rounding errors depend on the split of the rows: on any number of ranks the
    parameters agree but for these, not bit by bit as the centroids of KMeans do. All ranks end with the same bits.

    Args:
        num_clusters: K.
        covariance: "diagonal", variances of each component's own; "tied", one full matrix for all of them.
        num_iterations: updates of the parameters, at most.
        tolerance: the fit ends where the mean log-likelihood of a row (nats) changes by less.
        regularization: of the mean variance of the features, what is added to each variance. In many features
            likelihood rewards components that shrink to a few rows; the larger this is, the less.
        initial_iterations: of the k-means that the first components are made from.
        initial: of that k-means.
        device: where densities are computed.
    """

    num_clusters: int
    covariance: Covariance = "diagonal"
    num_iterations: int = 100
    tolerance: float = 1e-3
    regularization: float = 1e-3
    initial_iterations: int = 5
    initial: Literal["random", "kmeans++"] = "random"
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def least_rows(self) -> int:
        """See `Clusterer`."""
        return self.num_clusters

    @torch.no_grad()
    def fit(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,
        at_boundary: Callable[[], None] = lambda: None,
        initial: MixtureParameters | None = None,
    ) -> HeadClustering:
        """Gives each row to the component most responsible for it, the lowest index of equals. Collective.

        The centroids are the components' means. A component that is nobody's most responsible is given the row
        farthest from its centroid in the largest cluster, which becomes its centroid. See `Clusterer`, and
        `fit_parameters` for arguments and errors.
        """
        start = time.monotonic()
        fitted = self.fit_parameters(shard, num_samples, collectives, generator, at_boundary, initial)
        middle = time.monotonic()
        densities = fitted.parameters.densities(self.device)
        assignments = torch.empty(len(shard.features), dtype=torch.int32)
        for where in blocks_of(len(assignments), self.num_clusters):
            assignments[where] = densities.log_probabilities(shard.features[where]).argmax(1).int().cpu()
        centroids = fitted.parameters.means.float()
        num_empty = self._repair(shard, assignments, centroids, collectives)
        distances = squared_distances(shard.features, centroids, assignments).float()
        objective = mean_distance(distances, count_rows(shard, collectives), collectives)
        all_assignments, all_distances = everywhere(shard.sample_ids, assignments, distances, num_samples, collectives)
        return HeadClustering(
            assignments=all_assignments,
            distances=all_distances,
            centroids=centroids,
            objective=objective,
            num_iterations=fitted.num_iterations,
            num_empty_repaired=num_empty,
            placement="distributed",
            seconds={"iterate": middle - start, "finish": time.monotonic() - middle},
        )

    @torch.no_grad()
    def fit_parameters(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,
        at_boundary: Callable[[], None] = lambda: None,
        initial: MixtureParameters | None = None,
    ) -> MixtureFit:
        """The mixture of the rows of all ranks, the same bits on each of them. Collective.

        Args:
            shard: this rank's rows.
            num_samples: S.
            collectives: joins the ranks.
            generator: in the same state on every rank.
            at_boundary: called after each iteration, equally often on every rank; may raise on all of them to stop.
            initial: components to start from; by default those of a short k-means.

        Raises:
            UsageError: fewer rows than components.
            NonFiniteFeaturesError: a row holds nan or inf.
        """
        num_rows = count_rows(shard, collectives)
        require_rows(num_rows, self.num_clusters)
        largest_magnitude(shard, collectives)
        rows = MixtureRows(
            shard.features,
            num_rows,
            self.num_clusters,
            self.covariance,
            self.regularization,
            self.device,
            collectives,
        )
        if initial is None:
            kmeans = KMeans(
                self.num_clusters, self.initial_iterations, "distributed", initial=self.initial, devices=(self.device,)
            )
            hard = kmeans.fit(shard, num_samples, collectives, generator, at_boundary)
            parameters = rows.of_partition(hard.assignments[shard.sample_ids])
        else:
            parameters = initial.moved(-rows.mean)
        log_likelihood, num_iterations = -math.inf, 0
        while num_iterations < self.num_iterations:
            before = log_likelihood
            parameters, log_likelihood = rows.updated(parameters)
            num_iterations += 1
            at_boundary()
            if abs(log_likelihood - before) < self.tolerance:
                break
        return MixtureFit(parameters.moved(rows.mean), log_likelihood, num_iterations)

    def _repair(
        self, shard: FeatureShard, assignments: torch.Tensor, centroids: torch.Tensor, collectives: Collectives
    ) -> int:
        """Gives each component without rows one, in assignments [n] and centroids [K, D]; returns how many had none."""
        sizes = cluster_sizes(assignments, self.num_clusters, collectives)
        empty = torch.nonzero(sizes == 0).squeeze(1)
        if len(empty):
            distances = squared_distances(shard.features, centroids, assignments).float()
            chosen = farthest_rows(assignments, distances, shard.sample_ids, sizes, collectives)
            centroids[empty] = take_rows(shard, chosen, collectives)
            own, where = local_positions(shard, chosen)
            assignments[own] = empty[where].int()
        return len(empty)
