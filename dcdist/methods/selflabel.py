"""SCAN (Van Gansbeke et al., ECCV 2020), self-labelling: what a weak view says surely is the label of a strong view.

Shapes: B samples of a step, C classes, D features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dcdist.clustering.types import Clustering
from dcdist.data.transforms import View
from dcdist.methods.base import SKIPPED, EpochLength, EpochPlan, Method, Microbatch, Stream, usage_entropy_ratio
from dcdist.models.backbone import Backbone
from dcdist.models.heads import Classifier, LinearHeads
from dcdist.models.statistics import frozen_statistics


class Outputs(NamedTuple):
    """Of a step of B samples."""

    weak: torch.Tensor  # [B, C] logits, without gradient
    strong: torch.Tensor  # [B, C] logits


class SelfLabel(Method):
    """Goes on from a classifier, and trains it on its own confident predictions.

    Args:
        backbone: of the stage before.
        num_classes: C of the classifier that the stage takes over.
        threshold: probability above which a weak view's class is a label.
        class_balancing: whether rare classes among a step's labels weigh more.
        ema_decay: after each step the weights become their moving average with this decay; None: they do not.
        weak: the view that labels.
        strong: the view that learns.
        seed: where the order of an epoch derives from.
        length: how long an epoch is.
    """

    couples_samples = True
    classifies = True
    remedy = (
        "another selflabel.threshold (lower where no image is sure enough, higher where classes vanish), "
        "selflabel.class_balancing, or fewer epochs"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        threshold: float,
        class_balancing: bool,
        ema_decay: float | None,
        weak: View,
        strong: View,
        seed: int,
        length: EpochLength,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = LinearHeads(backbone.num_features, num_classes, 1, backbone.features_before_relu)
        self.threshold = threshold
        self.class_balancing = class_balancing
        self.ema_decay = ema_decay
        self.views = (weak, strong)
        self.seed = seed
        self.length = length
        self.averages = nn.ParameterList()
        if ema_decay is not None:
            self.averages = nn.ParameterList(nn.Parameter(p.detach().clone(), False) for p in self._learning())

    def _learning(self) -> list[nn.Parameter]:
        return [*self.backbone.parameters(), *self.heads.parameters()]

    def begin(self, classifier: Classifier | None) -> None:
        assert classifier is not None
        self.heads.set(classifier)
        for average, parameter in zip(self.averages, self._learning(), strict=bool(self.averages)):
            average.data.copy_(parameter.detach())

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        weak, strong = batch.views
        with torch.no_grad():
            labels = self._logits(weak)
        with frozen_statistics(self.backbone):  # those of weak views serve in evaluation
            return Outputs(labels, self._logits(strong))

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.heads(self.backbone(images)).float()
        return logits[:, 0]

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Cross-entropy of the strong views of the confident images; nothing to learn in a step that has none."""
        confidences, labels = outputs.weak.softmax(1).max(1)
        confident = ~(confidences <= self.threshold)  # nan is: what a broken network says must not look like silence
        if not confident.any():
            return {}
        labels = labels[confident]
        counts = torch.bincount(labels, minlength=self.heads.num_classes)
        weights = len(labels) / counts.clamp(min=1) if self.class_balancing else None
        return {"labels": functional.cross_entropy(outputs.strong[confident], labels, weights)}

    def after_step(self, kept: None) -> None:  # noqa: ARG002
        if self.ema_decay is not None:
            for average, parameter in zip(self.averages, self._learning(), strict=True):
                average.data.lerp_(parameter.detach(), 1 - self.ema_decay)
                parameter.data.copy_(average.data)

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:  # noqa: ARG002
        sample_ids = self.length.order(usable, self.seed, epoch)
        return EpochPlan({"images": Stream(sample_ids, None, self.views)}, self.length.num_steps(len(usable)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self._learning()}]

    def classifier(self) -> Classifier:
        return self.heads.classifier(0)

    def figures(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """The share of confident images, whether the step had none and was skipped, how evenly classes are used."""
        probabilities = outputs.weak.softmax(1)
        confident = (probabilities.amax(1) > self.threshold).float().mean()
        return {
            "confident_ratio": confident,
            SKIPPED: (confident == 0).float(),
            **usage_entropy_ratio(probabilities),
        }
