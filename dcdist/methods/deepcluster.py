"""DeepCluster (Caron, Bojanowski, Joulin, Douze, ECCV 2018): cluster the features, predict the clusters, repeat."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dcdist.clustering.types import Clustering
from dcdist.data.pseudo_labels import draw_reference, draw_uniform
from dcdist.data.transforms import View
from dcdist.distributed.seeding import numpy_generator
from dcdist.methods.base import EpochPlan, Method, Microbatch, Stream
from dcdist.models.backbone import Backbone
from dcdist.models.heads import ClusterHead

SAMPLERS = {"uniform": draw_uniform, "reference": draw_reference}


class Outputs(NamedTuple):
    """Of one microbatch of B samples."""

    logits: torch.Tensor  # [B, K]
    targets: torch.Tensor  # [B] int64


class DeepCluster(Method):
    """Trains the network to predict each image's cluster; the head starts anew at each reassignment.

    Args:
        backbone: what learns.
        num_clusters: K, the head's capacity.
        view: how a training image is cropped.
        seed: where the order of an epoch derives from (already specific to the stage).
        batch_size: samples a step.
        steps_per_epoch: None for as many as pass over the assigned samples once.
        sampler: "uniform" draws clusters evenly; "reference" as the published code does.
        head_learning_rate_scale: the head's learning rate over the backbone's.
        head_momentum: of SGD; 0 in the published code, which gives the head an optimizer of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_clusters: int,
        view: View,
        seed: int,
        batch_size: int,
        steps_per_epoch: int | None,
        sampler: str,
        head_learning_rate_scale: float,
        head_momentum: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ClusterHead(backbone.num_features, num_clusters, relu_first=backbone.features_before_relu)
        self.view = view
        self.seed = seed
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.draw = SAMPLERS[sampler]
        self.head_learning_rate_scale = head_learning_rate_scale
        self.head_momentum = head_momentum

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        (images,) = batch.views
        assert batch.targets is not None
        return Outputs(self.head(self.backbone(images)), batch.targets)

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        return {"clusters": functional.cross_entropy(outputs.logits.float(), outputs.targets)}

    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:
        (partition,) = clustering.heads
        self.head.reset(partition.num_clusters, generator)
        return list(self.head.parameters())

    def plan_epoch(self, epoch: int, clustering: Clustering | None) -> EpochPlan:
        assert clustering is not None
        assignments = clustering.heads[0].assignments.numpy()
        num_assigned = int(np.count_nonzero(assignments >= 0))
        num_steps = self.steps_per_epoch or -(-num_assigned // self.batch_size)
        generator = numpy_generator(self.seed, "order", epoch)
        sample_ids = self.draw(assignments, num_steps * self.batch_size, generator)
        stream = Stream(sample_ids, assignments[sample_ids].astype(np.int64), (self.view,))
        return EpochPlan({"clusters": stream}, num_steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = {"learning_rate_scale": self.head_learning_rate_scale, "momentum": self.head_momentum}
        return [{"params": list(self.backbone.parameters())}, {"params": list(self.head.parameters()), **head}]
