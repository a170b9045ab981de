"""Images kept out of training: the clusters they fall into, and the loss against these.

Shapes: H held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dcdist.clustering.linear_scan import linear_logits
from dcdist.clustering.pca import PCA
from dcdist.clustering.search import nearest_centroids
from dcdist.clustering.types import UNASSIGNED, Clustering
from dcdist.data.loader import Request
from dcdist.data.preparation import prepare
from dcdist.data.source import ImageSource
from dcdist.distributed.collectives import Collectives
from dcdist.features import (
    ImagePass,
    contiguous_range,
    extract_features,
    find_undecodable,
    gather_failures,
    num_boundaries,
    transform_features,
)
from dcdist.methods.base import Method


@dataclass(frozen=True)
class HeldOut:
    """The held-out split and how its images are seen."""

    split: str  # its name
    source: ImageSource
    images: ImagePass
    collectives: Collectives

    def find_undecodable(self, at_boundary: Callable[[], None]) -> Mapping[int, str]:
        """Sample id -> reason of the images that do not decode, on every rank. Collective."""
        failures = find_undecodable(self.source, self.images, self.collectives, at_boundary)
        return gather_failures(failures, self.collectives)

    def assign(
        self, method: Method, pca: PCA | None, clustering: Clustering, at_boundary: Callable[[], None]
    ) -> tuple[torch.Tensor, Mapping[int, str]]:
        """The cluster [H] int32 of each image under the first head, and what `find_undecodable` finds. Collective.

        Where a clustering has no heads (neighbours alone) no image has a cluster.
        """
        targets = torch.full((len(self.source),), UNASSIGNED, dtype=torch.int32)
        if not clustering.heads:
            return targets, self.find_undecodable(at_boundary)
        raw = extract_features(method.embedder(), self.source, self.images, self.collectives, at_boundary)
        shard = transform_features(raw, pca)
        head = clustering.heads[0]
        if head.linear is None:
            nearest, _ = nearest_centroids(shard.features, head.centroids)
        else:
            nearest = linear_logits(shard.features, head.linear).argmax(1).int()
        sample_ids = self.collectives.all_gather_rows(shard.sample_ids)
        targets[sample_ids] = self.collectives.all_gather_rows(nearest)
        return targets, gather_failures(raw.failures, self.collectives)

    @torch.no_grad()
    def loss(self, method: Method, targets: torch.Tensor, at_boundary: Callable[[], None]) -> float | None:
        """The mean loss of the first head against `targets` [H], in evaluation mode and with evaluation crops.

        None where no image has a target. Collective.
        """
        with_target = np.flatnonzero(targets.numpy() >= 0)
        if not len(with_target):
            return None
        own = contiguous_range(len(with_target), self.collectives.rank, self.collectives.world_size)
        mine = with_target[own.start : own.stop]
        chunks = (mine[start : start + self.images.batch_size] for start in range(0, len(mine), self.images.batch_size))
        requests = (Request(ids, targets.numpy()[ids].astype(np.int64), (self.images.view,), seed=0) for ids in chunks)
        method.eval()
        total = torch.zeros(2, dtype=torch.float64)  # sum of losses, number of images
        batches = self.images.loader.load(self.source, requests)
        for _ in range(num_boundaries(len(with_target), self.images.batch_size, self.collectives.world_size)):
            at_boundary()
            batch = next(batches, None)
            if batch is None:
                continue
            prepared = prepare(batch.to(self.images.numerics.device), (self.images.view,))
            with self.images.numerics.autocast():
                logits = method.cluster_logits(prepared.views[0])
            assert prepared.targets is not None
            loss = float(functional.cross_entropy(logits.float(), prepared.targets))
            total += torch.tensor([loss, 1.0], dtype=torch.float64) * len(batch.sample_ids)
        loss_sum, count = self.collectives.all_reduce_sum(total).tolist()
        return float(loss_sum / count)
