"""Linear classifiers on fixed rows, trained to agree with each row's neighbours: clusters as SCAN has them, in seconds.

Shapes: N rows on all ranks, n of them on this one, D features, K clusters, S samples of the dataset, H heads,
k neighbours, B rows of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from dcdist.clustering.consistency import scan_terms
from dcdist.clustering.empty import farthest_rows
from dcdist.clustering.initial import local_positions
from dcdist.clustering.neighbors import Neighbors, nearest_neighbors
from dcdist.clustering.partition import (
    cluster_means,
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
from dcdist.faults import fault_point

_STEPS_A_ROUND = 20  # of one boundary
_WEIGHT_DECAY = 1e-3
_INITIAL_SCALE = 2.0  # of the weights: sure from the start, so that heads begin as different partitions
_LOGITS_A_BLOCK = 2**22


class _Graph(NamedTuple):
    """Rank 0's: every row, and where its neighbours are."""

    rows: torch.Tensor  # [N, D], of about unit variance in each feature where rows have length 1
    neighbors: torch.Tensor  # [N, k] positions in `rows`


@dataclass(frozen=True)
class LinearScan:
    """SCAN's loss on rows that stay as they are; a `Clusterer`.

    Van Gansbeke et al. (2020): -log <p_i, p_j> for neighbours i, j, minus an entropy weight times the entropy of the
    mean assignment. k-means follows whatever varies most; this follows what neighbours share, and of several heads
    that start differently the one of the lowest loss (entropy weight 1, as published) is kept. No label is used.

    Args:
        num_clusters: K.
        num_neighbors: k.
        entropy_weight: while training.
        num_heads: H, starts that are trained side by side.
        num_steps: of Adam, with a learning rate that falls to 0.
        batch_size: B; fewer rows are a batch of their own.
        learning_rate: at first.
        device: where rank 0 trains.
    """

    num_clusters: int
    num_neighbors: int = 20
    entropy_weight: float = 5.0
    num_heads: int = 32
    num_steps: int = 400
    batch_size: int = 1000
    learning_rate: float = 1e-2
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def least_rows(self) -> int:
        """See `Clusterer`."""
        return max(self.num_clusters, self.num_neighbors + 1)

    def fit(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,
        generator: torch.Generator,
        at_boundary: Callable[[], None] = lambda: None,
        found: Neighbors | None = None,
    ) -> HeadClustering:
        """Neighbours are searched by all ranks (unless they are given), the heads trained by rank 0. Collective.

        Raises:
            UsageError: fewer rows than clusters or neighbours.
            NonFiniteFeaturesError: a row holds nan or inf.
        """
        clock = [time.monotonic()]
        num_rows = count_rows(shard, collectives)
        require_rows(num_rows, self.num_clusters)
        largest = largest_magnitude(shard, collectives)
        seed = int(torch.randint(2**62, (), generator=generator))
        if found is None:
            found = nearest_neighbors(
                shard, self.num_neighbors, num_samples, collectives, at_boundary, device=self.device
            )
        graph = self._graph(shard, found, collectives)
        clock.append(time.monotonic())
        linear = self._train(graph, shard.features.shape[1], seed, collectives, at_boundary)
        clock.append(time.monotonic())
        with torch.no_grad():
            assignments = linear_logits(shard.features, linear).argmax(1).int()
            num_empty = self._repair(shard, assignments, linear, collectives)
            sizes = cluster_sizes(assignments, self.num_clusters, collectives)
            centroids = cluster_means(shard, assignments, sizes, largest, collectives)
            distances = squared_distances(shard.features, centroids, assignments).float()
        objective = mean_distance(distances, num_rows, collectives)
        assignments, distances = everywhere(shard.sample_ids, assignments, distances, num_samples, collectives)
        clock.append(time.monotonic())
        phases = zip(("neighbors", "iterate", "finish"), clock, clock[1:], strict=False)
        return HeadClustering(
            assignments=assignments,
            distances=distances,
            centroids=centroids,
            objective=objective,
            num_iterations=self.num_steps,
            num_empty_repaired=num_empty,
            placement="rank0",
            seconds={name: end - start for name, start, end in phases},
            linear=linear,
        )

    def _graph(self, shard: FeatureShard, found: Neighbors, collectives: Collectives) -> _Graph | None:
        sample_ids = collectives.gather_rows(found.sample_ids)
        rows = collectives.gather_rows(shard.features)
        indices = collectives.gather_rows(found.indices)
        if sample_ids is None or rows is None or indices is None:
            return None
        sample_ids, order = sample_ids.sort()  # the draws do not depend on which rank had a row
        neighbors = torch.searchsorted(sample_ids, indices[order])
        return _Graph((rows[order] * _scale(rows)).to(self.device), neighbors.to(self.device))

    def _train(
        self,
        graph: _Graph | None,
        num_features: int,
        seed: int,
        collectives: Collectives,
        at_boundary: Callable[[], None],
    ) -> torch.Tensor:
        """[K, D + 1], on every rank: the head of the lowest loss, its bias last."""
        heads = _Heads(self, graph, seed) if graph else None
        for done in range(0, self.num_steps, _STEPS_A_ROUND):
            for step in range(done, min(done + _STEPS_A_ROUND, self.num_steps)):
                if heads:
                    heads.step(step)
            fault_point("linear_scan:round")
            collectives.barrier()
            at_boundary()
        linear = heads.best() if heads else torch.empty(self.num_clusters, num_features + 1)
        return collectives.broadcast(linear)

    def _repair(
        self, shard: FeatureShard, assignments: torch.Tensor, linear: torch.Tensor, collectives: Collectives
    ) -> int:
        """Gives each cluster that is empty the row that its own cluster claims least, in place; returns how many."""
        sizes = cluster_sizes(assignments, self.num_clusters, collectives)
        empty = torch.nonzero(sizes == 0).squeeze(1)
        if len(empty):
            doubt = -linear_logits(shard.features, linear).log_softmax(1).amax(1)
            chosen = farthest_rows(assignments, doubt, shard.sample_ids, sizes, collectives)
            own, where = local_positions(shard, chosen)
            assignments[own] = empty[where].int()
        return len(empty)


class _Heads:
    """H linear classifiers over K clusters, trained by rank 0."""

    def __init__(self, scan: LinearScan, graph: _Graph, seed: int) -> None:
        self._scan, self._graph = scan, graph
        self._generator = torch.Generator().manual_seed(seed)
        width = graph.rows.shape[1]
        initial = torch.randn(width, scan.num_clusters, scan.num_heads, generator=self._generator)
        self._weights = (initial * (_INITIAL_SCALE / width**0.5)).to(graph.rows.device).requires_grad_()
        self._biases = torch.zeros_like(self._weights[0]).requires_grad_()
        self._batch_size = min(scan.batch_size, len(graph.rows))
        self._optimizer = torch.optim.Adam([self._weights, self._biases], scan.learning_rate)

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [B, D] -> [B, H, K]."""
        logits: torch.Tensor = rows @ self._weights.flatten(1) + self._biases.flatten()
        return logits.view(-1, *self._biases.shape).transpose(1, 2)

    def step(self, step: int) -> None:
        scan, (rows, neighbors), size = self._scan, self._graph, (self._batch_size,)
        for group in self._optimizer.param_groups:
            group["lr"] = scan.learning_rate * (1 - step / scan.num_steps)
        anchors = torch.randint(len(rows), size, generator=self._generator).to(rows.device)
        choice = torch.randint(neighbors.shape[1], size, generator=self._generator).to(rows.device)
        consistency, entropy = scan_terms(self._logits(rows[anchors]), self._logits(rows[neighbors[anchors, choice]]))
        loss = (consistency - scan.entropy_weight * entropy).sum() + _WEIGHT_DECAY * self._weights.square().sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    @torch.no_grad()
    def best(self) -> torch.Tensor:
        """[K, D + 1] on the CPU, for rows as they were given: of the lowest loss over rows and a neighbour of each."""
        scan, (rows, neighbors) = self._scan, self._graph
        choice = torch.randint(neighbors.shape[1], (len(rows),), generator=self._generator).to(rows.device)
        partners = neighbors[torch.arange(len(rows), device=rows.device), choice]
        consistency = torch.zeros(scan.num_heads, dtype=torch.float64, device=rows.device)
        mean = torch.zeros(scan.num_heads, scan.num_clusters, dtype=torch.float64, device=rows.device)
        rows_a_block = max(1, _LOGITS_A_BLOCK // (scan.num_heads * scan.num_clusters))
        for block in torch.split(torch.arange(len(rows), device=rows.device), rows_a_block):
            anchors = self._logits(rows[block])
            agreement, _ = scan_terms(anchors, self._logits(rows[partners[block]]))
            consistency += agreement.double() * len(block)
            mean += anchors.softmax(2).double().sum(0)
        losses = consistency / len(rows) - torch.special.entr(mean / len(rows)).sum(1)
        head = int(losses.argmin())
        weights = self._weights[:, :, head].T * _scale(rows)
        return torch.cat([weights, self._biases[:, head].unsqueeze(1)], dim=1).float().cpu()


def linear_logits(rows: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    """Rows [n, D] under [K, D + 1], biases last -> logits [n, K]."""
    return functional.linear(rows, linear[:, :-1].to(rows.device), linear[:, -1].to(rows.device))


def _scale(rows: torch.Tensor) -> float:
    """What makes features of unit variance of rows of length 1."""
    return float(rows.shape[1] ** 0.5)
