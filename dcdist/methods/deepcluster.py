"""DeepCluster (Caron, Bojanowski, Joulin, Douze, ECCV 2018): cluster the features, predict the clusters, repeat.

Shapes: N samples, B samples of a microbatch, P planned samples, H heads, K clusters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dcdist.clustering.types import Clustering
from dcdist.data.pseudo_labels import draw_reference, draw_uniform
from dcdist.data.transforms import View
from dcdist.distributed.seeding import numpy_generator
from dcdist.methods.base import EpochLength, EpochPlan, Method, Microbatch, Stream
from dcdist.models.backbone import Backbone
from dcdist.models.heads import ClusterHead

SAMPLERS = {"uniform": draw_uniform, "reference": draw_reference}


class Outputs(NamedTuple):
    """Of one microbatch of B samples."""

    logits: tuple[torch.Tensor, ...]  # of each head [B, K]
    targets: torch.Tensor  # [B, H] int64


class DeepCluster(Method):
    """Trains the network to predict each image's cluster; the heads start anew at each reassignment.

    With several numbers of clusters there are several heads, each with a clustering of its own of the same features.

    Args:
        backbone: what learns.
        num_clusters: K of each head, its capacity.
        view: how a training image is seen.
        seed: where the order of an epoch derives from (already specific to the stage).
        length: how long an epoch is.
        sampler: "uniform" draws clusters evenly (those of each head for its share of the draws); "reference" as the
            published code does.
        head_learning_rate_scale: the head's learning rate over the backbone's.
        head_momentum: of SGD; 0 in the published code, which gives the head an optimizer of its own.
    """

    takes = "clusters"
    remedy = (
        "more steps between reassignments (clustering.every_num_epochs), a faster head "
        "(deepcluster.head_learning_rate_scale), fewer clusters, or a lower train.learning_rate"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_clusters: tuple[int, ...],
        view: View,
        seed: int,
        length: EpochLength,
        sampler: str,
        head_learning_rate_scale: float,
        head_momentum: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        relu_first = backbone.features_before_relu
        self.heads = nn.ModuleList(ClusterHead(backbone.num_features, k, relu_first) for k in num_clusters)
        self.view = view
        self.seed = seed
        self.length = length
        self.draw = SAMPLERS[sampler]
        self.head_learning_rate_scale = head_learning_rate_scale
        self.head_momentum = head_momentum

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        (images,) = batch.views
        assert batch.targets is not None
        features = self.backbone(images)
        return Outputs(tuple(head(features) for head in self.heads), batch.targets)

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        each = [
            functional.cross_entropy(logits.float(), targets)
            for logits, targets in zip(outputs.logits, outputs.targets.unbind(1), strict=True)
        ]
        return {"clusters": torch.stack(each).mean()}

    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:
        for head, partition in zip(self.heads, clustering.heads, strict=True):
            assert isinstance(head, ClusterHead)
            head.reset(partition.num_clusters, generator)
        return list(self.heads.parameters())

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:
        assert clustering is not None
        assignments = np.stack([head.assignments.numpy() for head in clustering.heads], axis=1).astype(
            np.int64
        )  # [N, H]
        num_heads = assignments.shape[1]
        num_steps = self.length.num_steps(len(usable))
        num_draws = num_steps * self.length.batch_size
        generator = numpy_generator(self.seed, "order", epoch)
        sample_ids = np.empty(num_draws, np.int64)
        for head in range(num_heads):  # every H-th draw is one of this head's
            share = len(range(head, num_draws, num_heads))
            sample_ids[head::num_heads] = self.draw(assignments[:, head], share, generator)
        return EpochPlan({"clusters": Stream(sample_ids, assignments[sample_ids], (self.view,))}, num_steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        heads = {"learning_rate_scale": self.head_learning_rate_scale, "momentum": self.head_momentum}
        return [{"params": list(self.backbone.parameters())}, {"params": list(self.heads.parameters()), **heads}]

    def cluster_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.heads[0](self.backbone(images))
        return logits

    def chance_losses(self) -> dict[str, float]:
        heads = [head for head in self.heads if isinstance(head, ClusterHead)]
        return {"clusters": sum(math.log(head.num_active) for head in heads) / len(heads)}
