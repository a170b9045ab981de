"""SCAN (Van Gansbeke et al., ECCV 2020), semantic clustering: an image and its neighbours belong to one class.

Shapes: N samples, B samples of a step, H heads, C classes, k neighbours, D features.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from dcdist.clustering.consistency import scan_terms
from dcdist.clustering.types import Clustering
from dcdist.data.transforms import View
from dcdist.distributed.seeding import numpy_generator
from dcdist.methods.base import USAGE, EpochLength, EpochPlan, Method, Microbatch, Stream, usage_entropy_ratio
from dcdist.models.backbone import Backbone
from dcdist.models.heads import Classifier, LinearHeads

ANCHORS, NEIGHBORS = "anchors", "neighbors"
_SELECTION_DECAY = 0.99  # of the running loss that a head is selected by
_SELECTION_ENTROPY_WEIGHT = 1.0  # as in the published selection, whatever weight trains


class Outputs(NamedTuple):
    """Of a step of B samples."""

    anchors: torch.Tensor  # [B, H, C] logits
    neighbors: torch.Tensor  # [B, H, C] logits, each row's of one neighbour of the anchor


class Scan(Method):
    """Learns a classifier by consistency with neighbours that were mined once, and by the entropy of the mean.

    Args:
        backbone: trained by a pretext before; learns on, unless `train_backbone` is false.
        num_classes: C.
        num_heads: H, trained side by side.
        entropy_weight: of the entropy of the mean assignment.
        train_backbone: whether more than the heads learns.
        initial: where heads start; "readout": all at the final clustering of the stage before. From random heads,
            as published, training finds a partition of its own, often one that is easier and worth less.
        view: how an image is seen.
        seed: where the order of an epoch derives from.
        length: how long an epoch is.
    """

    couples_samples = True
    takes = "neighbors"
    classifies = True
    remedy = "a larger scan.entropy_weight, or a longer pretext before it"
    selection_losses: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_heads: int,
        entropy_weight: float,
        train_backbone: bool,
        initial: Literal["random", "readout"],
        view: View,
        seed: int,
        length: EpochLength,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = LinearHeads(backbone.num_features, num_classes, num_heads, backbone.features_before_relu)
        self.entropy_weight = entropy_weight
        self.train_backbone = train_backbone
        self.initial = initial
        self.view = view
        self.seed = seed
        self.length = length
        self.register_buffer("selection_losses", torch.zeros(num_heads))

    def begin(self, classifier: Classifier | None) -> None:
        if self.initial == "readout":
            assert classifier is not None
            self.heads.set(classifier)

    def train(self, mode: bool = True) -> Scan:
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
        return self

    def forward(self, microbatch: Microbatch) -> Outputs:
        images = torch.cat([*microbatch[ANCHORS].views, *microbatch[NEIGHBORS].views])
        with torch.set_grad_enabled(self.train_backbone and torch.is_grad_enabled()):
            features = self.backbone(images)
        return Outputs(*self.heads(features).float().chunk(2))

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Equation 2, summed over the heads, which share nothing but the backbone."""
        consistency, entropy = scan_terms(outputs.anchors, outputs.neighbors)
        return {"consistency": consistency.sum(), "entropy": -self.entropy_weight * entropy.sum()}

    def keep(self, outputs: Outputs) -> torch.Tensor:
        consistency, entropy = scan_terms(outputs.anchors, outputs.neighbors)
        return consistency - _SELECTION_ENTROPY_WEIGHT * entropy

    def after_step(self, kept: torch.Tensor) -> None:
        self.selection_losses.lerp_(kept, 1 - _SELECTION_DECAY)

    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:  # noqa: ARG002
        assert clustering.neighbors is not None
        return []

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:
        """Pairs of an image and one of its neighbours, which is itself as often as any other, as published."""
        assert clustering is not None
        assert clustering.neighbors is not None
        neighbors = clustering.neighbors.numpy()
        num_steps = self.length.num_steps(len(usable))
        anchors = self.length.order(usable, self.seed, epoch)
        candidates = np.concatenate([anchors[:, None], neighbors[anchors]], axis=1)
        choice = numpy_generator(self.seed, "neighbors", epoch).integers(candidates.shape[1], size=len(anchors))
        partners = candidates[np.arange(len(anchors)), choice]
        views = (self.view,)
        return EpochPlan({ANCHORS: Stream(anchors, None, views), NEIGHBORS: Stream(partners, None, views)}, num_steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        heads = {"params": list(self.heads.parameters())}
        return [{"params": list(self.backbone.parameters())}, heads] if self.train_backbone else [heads]

    def classifier(self) -> Classifier:
        """The head whose loss was the lowest lately."""
        return self.heads.classifier(int(self.selection_losses.argmin()))

    def figures(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """How evenly classes are used, the mean over the heads: what one calls a class is another's other class."""
        each = [usage_entropy_ratio(head)[USAGE] for head in outputs.anchors.softmax(2).unbind(1)]
        return {USAGE: torch.stack(each).mean()}

    def chance_losses(self) -> dict[str, float]:
        return {"consistency": self.heads.num_heads * math.log(self.heads.num_classes)}
