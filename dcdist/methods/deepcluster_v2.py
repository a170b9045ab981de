"""DeepCluster-v2 (Caron et al., NeurIPS 2020): cluster embeddings that training computed, classify by the centroids.

Shapes: N samples, B samples of a microbatch, V views, H heads, K clusters of a head, E dimensions of the embedding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dcdist.clustering.bank import FeatureBank
from dcdist.clustering.types import Clustering
from dcdist.data.transforms import View
from dcdist.methods.base import EpochLength, EpochPlan, Method, Microbatch, Stream
from dcdist.models.backbone import Backbone
from dcdist.models.heads import Embedder, Prototypes
from dcdist.models.projection import ProjectedBackbone, Projector, embed_views

NUM_BANK_VIEWS = 2  # the first views of an image, whose embeddings are kept to be clustered


class Outputs(NamedTuple):
    """Of one microbatch of B samples."""

    sample_ids: torch.Tensor  # [B] int64
    embeddings: torch.Tensor  # [B, 2, E], of the first views, without gradient
    logits: tuple[torch.Tensor, ...]  # of each head [B, V, K]
    targets: torch.Tensor  # [B, H] int64


class Kept(NamedTuple):
    """What goes into the bank."""

    sample_ids: torch.Tensor
    embeddings: torch.Tensor


class DeepClusterV2(Method):
    """Every view of an image predicts the image's cluster among the centroids themselves, by cosine and softmax.

    Head h clusters the bank of view h modulo 2; its centroids take the place of learnt weights, so that nothing starts
    anew at a reassignment. Rows come from the epoch before; before the first, and without a bank always, they come from
    a pass over the images. In an epoch of few steps the network changes so much that a bank's clusters follow the step
    at which a row was computed.

    Args:
        backbone: what learns.
        projector: behind it, to E dimensions.
        num_clusters: K of each head, its capacity.
        views: how an image is seen; the first two fill the bank.
        seed: where the order of an epoch derives from.
        length: how long an epoch is.
        temperature: of the softmax over cosines.
        bank: of two views and E dimensions, or None.
    """

    takes = "clusters"
    clusters_embeddings = True
    num_views = (2, math.inf)
    remedy = "a lower train.learning_rate, fewer clusters, or deepcluster_v2.bank=false"

    def __init__(
        self,
        backbone: Backbone,
        projector: Projector,
        num_clusters: tuple[int, ...],
        views: tuple[View, ...],
        seed: int,
        length: EpochLength,
        temperature: float,
        bank: FeatureBank | None,
    ) -> None:
        super().__init__()
        assert len(views) >= NUM_BANK_VIEWS
        self.backbone = backbone
        self.projector = projector
        self.prototypes = nn.ModuleList(Prototypes(k, projector.dimensions) for k in num_clusters)
        self.views = views
        self.seed = seed
        self.length = length
        self.temperature = temperature
        self.bank = bank

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        assert batch.targets is not None
        embeddings = embed_views(self.backbone, self.projector, batch.views)
        logits = tuple(prototypes(embeddings) / self.temperature for prototypes in self.prototypes)
        return Outputs(batch.sample_ids, embeddings[:, :NUM_BANK_VIEWS].detach(), logits, batch.targets)

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Cross-entropy with one target for all views, the mean over heads and views."""
        each = []
        for logits, targets in zip(outputs.logits, outputs.targets.unbind(1), strict=True):
            repeated = targets.unsqueeze(1).expand(-1, logits.shape[1])
            each.append(functional.cross_entropy(logits.flatten(0, 1), repeated.flatten()))
        return {"clusters": torch.stack(each).mean()}

    def keep(self, outputs: Outputs) -> Kept | None:
        return Kept(outputs.sample_ids, outputs.embeddings) if self.bank else None

    def after_step(self, kept: Kept | None) -> None:
        if self.bank and kept:
            self.bank.write(kept.sample_ids, kept.embeddings)

    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:  # noqa: ARG002
        for prototypes, partition in zip(self.prototypes, clustering.heads, strict=True):
            assert isinstance(prototypes, Prototypes)
            prototypes.set(partition.centroids)
        return []

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:
        assert clustering is not None
        assignments = np.stack([head.assignments.numpy() for head in clustering.heads], axis=1).astype(np.int64)
        num_steps = self.length.num_steps(len(usable))
        sample_ids = self.length.order(usable, self.seed, epoch)
        return EpochPlan({"clusters": Stream(sample_ids, assignments[sample_ids], self.views)}, num_steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]

    def embedder(self) -> Embedder:
        return ProjectedBackbone(self.backbone, self.projector)

    def cluster_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.prototypes[0](self.projector(self.backbone(images))) / self.temperature
        return logits

    def chance_losses(self) -> dict[str, float]:
        active = [prototypes.num_active for prototypes in self.prototypes if isinstance(prototypes, Prototypes)]
        return {"clusters": sum(map(math.log, active)) / len(active)}
