"""k-means over the rows of all ranks: gathered to rank 0, or where they lie; the result is the same bit by bit.

Shapes: N rows on all ranks, n of them on this one, K clusters, D features, S samples of the dataset.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from dcdist.clustering.empty import farthest_rows
from dcdist.clustering.exact_sums import fraction_bits
from dcdist.clustering.initial import draw_sample_ids, local_positions, present_sample_ids, take_rows
from dcdist.clustering.kmeans_plus_plus import kmeans_plus_plus
from dcdist.clustering.lloyd import Lloyd
from dcdist.clustering.partition import (
    cluster_sizes,
    count_rows,
    everywhere,
    largest_magnitude,
    mean_distance,
    require_rows,
)
from dcdist.clustering.rows import Centroids, ShardedRows
from dcdist.clustering.scores import full_precision
from dcdist.clustering.types import FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator

Placement = Literal["rank0", "distributed"]

_GIB = 2**30
_REPAIR_SEARCHES = 2  # after so many searches from the farthest rows, what is still empty takes its row by force


def choose_placement(
    num_samples: int, dimensions: int, gather_limit_gib: float, world_size: int
) -> tuple[Placement, str]:
    """Where k-means runs under clustering.placement=auto, and why, in words."""
    size = 4 * num_samples * dimensions / _GIB
    gathered = f"{num_samples:,} rows of {dimensions} float32 features are {size:.3g} GiB"
    if world_size == 1:
        return "rank0", "there is one process"
    if size <= gather_limit_gib:
        return "rank0", f"{gathered}, within clustering.gather_limit_gib={gather_limit_gib:g}"
    return "distributed", f"{gathered}, more than clustering.gather_limit_gib={gather_limit_gib:g}"


@dataclass(frozen=True)
class KMeans:
    """Lloyd's k-means from K distinct rows; a `Clusterer`.

    Every assignment is to the exactly nearest centroid and every sum is exact (see search.py and exact_sums.py), so
    the result depends neither on the placement nor on engine, devices, number of processes or order of the rows.

    Args:
        num_clusters: K.
        num_iterations: updates of the centroids; fewer where nothing changes any more.
        placement: "rank0" gathers the rows to rank 0; "distributed" leaves them, and reduces K x (D + 1) numbers an
            iteration; "auto" gathers while the rows fit `gather_limit_gib`.
        gather_limit_gib: see placement.
        spherical: centroids are normalised after each update, for rows that are.
        engine: who computes distances, "torch" or "faiss"; "auto" is torch, which on a CPU is faster (scores.py).
        initial: "random" starts from distinct rows drawn uniformly; "kmeans++" from rows far from each other, which
            costs about 2 + ln K searches of all rows (kmeans_plus_plus.py).
        devices: this process's own first, then those that rank 0 may shard gathered rows over; no other is used.
    """

    num_clusters: int
    num_iterations: int = 20
    placement: Literal["auto", "rank0", "distributed"] = "auto"
    gather_limit_gib: float = 16.0
    spherical: bool = False
    engine: Literal["auto", "faiss", "torch"] = "auto"
    initial: Literal["random", "kmeans++"] = "random"
    devices: tuple[torch.device, ...] = (torch.device("cpu"),)

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
        initial_centroids: torch.Tensor | None = None,
    ) -> HeadClustering:
        """Partitions the rows of all ranks. Collective.

        Args:
            shard: this rank's rows.
            num_samples: S; a sample that no rank has rows of is UNASSIGNED.
            collectives: joins the ranks.
            generator: in the same state on every rank.
            at_boundary: called after each iteration, and each round of k-means++, equally often on every rank; may
                raise on all of them to stop.
            initial_centroids: [K, D] float32, the same on every rank; drawn where it is left out.

        Raises:
            UsageError: fewer rows than clusters.
            NonFiniteFeaturesError: a row holds nan or inf.
        """
        num_rows = count_rows(shard, collectives)
        require_rows(num_rows, self.num_clusters)
        largest = largest_magnitude(shard, collectives)
        placement: Placement = (
            choose_placement(num_samples, shard.features.shape[1], self.gather_limit_gib, collectives.world_size)[0]
            if self.placement == "auto"
            else self.placement
        )
        seed = int(torch.randint(2**62, (), generator=generator))
        fit = _Fit(self, num_samples, num_rows, largest, seed, generator, initial_centroids)
        with full_precision():
            if placement == "distributed" or collectives.world_size == 1:
                return fit.run(shard, collectives, placement, at_boundary)
            return fit.run_on_rank0(shard, collectives, at_boundary)


@dataclass(frozen=True)
class _Fit:
    """One call of KMeans.fit, after its arguments were inspected."""

    kmeans: KMeans
    num_samples: int
    num_rows: int
    largest: float  # magnitude of a feature
    seed: int
    generator: torch.Generator
    initial_centroids: torch.Tensor | None

    def run_on_rank0(
        self, shard: FeatureShard, collectives: Collectives, at_boundary: Callable[[], None]
    ) -> HeadClustering:
        """Rank 0 clusters all rows, the others wait for each of its iterations, so that all stop together."""
        start = time.monotonic()
        sample_ids = collectives.gather_rows(shard.sample_ids)
        features = collectives.gather_rows(shard.features)
        result = None
        if sample_ids is not None and features is not None:
            seconds = time.monotonic() - start

            def after_iteration() -> None:
                collectives.any_rank(True)
                at_boundary()

            result = self.run(FeatureShard(sample_ids, features), Collectives(), "rank0", after_iteration)
            result = replace(result, seconds={"gather": seconds, **result.seconds})
            collectives.any_rank(False)
        else:
            while collectives.any_rank(False):
                at_boundary()
        return self._shared(result, shard.features.shape[1], collectives)

    def _shared(self, result: HeadClustering | None, num_features: int, collectives: Collectives) -> HeadClustering:
        if result is None:
            result = HeadClustering(
                assignments=torch.empty(self.num_samples, dtype=torch.int32),
                distances=torch.empty(self.num_samples),
                centroids=torch.empty(self.kmeans.num_clusters, num_features),
                objective=0.0,
                num_iterations=0,
                num_empty_repaired=0,
                placement="rank0",
            )
        for tensor in (result.assignments, result.distances, result.centroids):
            collectives.broadcast(tensor)
        scalars = (result.objective, result.num_iterations, result.num_empty_repaired, result.seconds)
        objective, num_iterations, num_empty_repaired, seconds = collectives.broadcast_object(scalars)
        return replace(
            result,
            objective=objective,
            num_iterations=num_iterations,
            num_empty_repaired=num_empty_repaired,
            seconds=seconds,
        )

    def run(
        self, shard: FeatureShard, collectives: Collectives, placement: Placement, after_iteration: Callable[[], None]
    ) -> HeadClustering:
        """Clusters the rows that the ranks of these collectives hold."""
        kmeans = self.kmeans
        clock = [time.monotonic()]
        engine = "torch" if kmeans.engine == "auto" else kmeans.engine
        bits = fraction_bits(self.largest, self.num_rows)
        devices = kmeans.devices[:1] if placement == "distributed" else kmeans.devices
        rows = ShardedRows(shard.features, devices, kmeans.num_clusters, engine, bits)
        initial = self.initial_centroids
        if initial is None:
            initial = take_rows(shard, self._draw(shard, devices, collectives, after_iteration), collectives)
        clock.append(time.monotonic())
        lloyd = Lloyd(kmeans.num_iterations, kmeans.spherical, bits, self.seed)
        centroids, num_iterations = lloyd.run(rows, initial, collectives, after_iteration)
        clock.append(time.monotonic())
        centroids, num_empty = self._repair(rows, shard, centroids, collectives)
        distances = rows.distances(centroids.values)
        objective = mean_distance(distances, self.num_rows, collectives)
        assignments, distances = everywhere(
            shard.sample_ids, rows.assignments(), distances, self.num_samples, collectives
        )
        clock.append(time.monotonic())
        phases = zip(("initialize", "iterate", "finish"), clock, clock[1:], strict=False)
        return HeadClustering(
            assignments=assignments,
            distances=distances,
            centroids=centroids.values,
            objective=objective,
            num_iterations=num_iterations,
            num_empty_repaired=num_empty,
            placement=placement,
            seconds={name: end - start for name, start, end in phases},
        )

    def _draw(
        self,
        shard: FeatureShard,
        devices: tuple[torch.device, ...],
        collectives: Collectives,
        after_round: Callable[[], None],
    ) -> torch.Tensor:
        """The sample ids [K] of the rows to start from."""
        num_clusters = self.kmeans.num_clusters
        if self.kmeans.initial == "kmeans++":
            generator = torch_generator(self.seed, "kmeans++")
            return kmeans_plus_plus(
                shard,
                self.num_samples,
                self.num_rows,
                self.largest,
                num_clusters,
                collectives,
                generator,
                devices,
                after_round,
            )
        present = present_sample_ids(shard, self.num_samples, self.num_rows, collectives)
        return draw_sample_ids(present, self.num_samples, num_clusters, self.generator)

    def _repair(
        self, rows: ShardedRows, shard: FeatureShard, centroids: Centroids, collectives: Collectives
    ) -> tuple[Centroids, int]:
        """Gives each cluster that is empty a row as its centroid; returns how many there were."""
        num_empty = 0
        for attempt in range(_REPAIR_SEARCHES + 1):
            counts = cluster_sizes(rows.assignments(), self.kmeans.num_clusters, collectives)
            empty = torch.nonzero(counts == 0).squeeze(1)
            num_empty = num_empty or len(empty)
            if not len(empty):
                break
            distances = rows.distances(centroids.values)
            chosen = farthest_rows(rows.assignments(), distances, shard.sample_ids, counts, collectives)
            values = centroids.values.clone()
            values[empty] = take_rows(shard, chosen, collectives)
            centroids = Centroids(values, previous=centroids.values)
            if attempt < _REPAIR_SEARCHES:
                rows.assign(centroids)
            else:  # rows that equal rows of another cluster, which the search gives to the lowest index
                own, where = local_positions(shard, chosen)
                rows.move(own, empty[where])
        return centroids, num_empty
