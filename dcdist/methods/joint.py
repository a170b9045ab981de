"""Several methods on one backbone at once: a weighted sum of their losses, each with views and an order of its own.

Shapes: U usable samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dcdist.clustering.types import Clustering
from dcdist.methods.base import EpochPlan, Method, Microbatch
from dcdist.models.backbone import Backbone
from dcdist.models.heads import Classifier, Embedder
from dcdist.models.statistics import frozen_statistics


class Joint(Method):
    """Trains all parts in every step. At most one of them takes clusters.

    Batch normalisation's running statistics, which evaluation uses, are those of the leading part alone: tiles of a
    puzzle are no images.

    Args:
        backbone: the one that every part holds, too.
        parts: by name; an epoch of each has the same number of steps.
        weights: of each part's losses.
        leading: the name of the part that takes clusters, or of any where none does.
    """

    remedy = "another weight of the part that collapses"

    def __init__(
        self, backbone: Backbone, parts: Mapping[str, Method], weights: Mapping[str, float], leading: str
    ) -> None:
        super().__init__()
        assert all(part.backbone is backbone for part in parts.values())
        self.backbone = backbone
        self.parts = nn.ModuleDict(parts)
        self.weights = dict(weights)
        self.leading = leading
        self.couples_samples = any(part.couples_samples for part in parts.values())
        self.bank = self._leader.bank

    @property
    def _leader(self) -> Method:
        return self._part(self.leading)

    def _part(self, name: str) -> Method:
        part = self.parts[name]
        assert isinstance(part, Method)
        return part

    def forward(self, microbatch: Microbatch) -> dict[str, Any]:
        outputs = {}
        for name in self.parts:
            prefix = f"{name}/"
            streams = {
                stream.removeprefix(prefix): batch for stream, batch in microbatch.items() if stream.startswith(prefix)
            }
            if name == self.leading:
                outputs[name] = self._part(name)(streams)
            else:
                with frozen_statistics(self.backbone):
                    outputs[name] = self._part(name)(streams)
        return outputs

    def losses(self, outputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{loss}": self.weights[name] * value
            for name in self.parts
            for loss, value in self._part(name).losses(outputs[name]).items()
        }

    def figures(self, outputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{figure}": value
            for name in self.parts
            for figure, value in self._part(name).figures(outputs[name]).items()
        }

    def chance_losses(self) -> dict[str, float]:
        return {
            f"{name}/{loss}": self.weights[name] * value
            for name in self.parts
            for loss, value in self._part(name).chance_losses().items()
        }

    def keep(self, outputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: self._part(name).keep(outputs[name]) for name in self.parts}
        return {name: value for name, value in kept.items() if value is not None}

    def after_step(self, kept: dict[str, Any]) -> None:
        for name in self.parts:
            self._part(name).after_step(kept.get(name))

    def begin(self, classifier: Classifier | None) -> None:
        for name in self.parts:
            self._part(name).begin(classifier)

    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:
        return self._leader.adopt(clustering, generator)

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:
        plans = {name: self._part(name).plan_epoch(epoch, usable, clustering) for name in self.parts}
        (num_steps,) = {plan.num_steps for plan in plans.values()}
        streams = {
            f"{name}/{stream}": samples for name, plan in plans.items() for stream, samples in plan.streams.items()
        }
        return EpochPlan(streams, num_steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the parts, each parameter in the first group that has it."""
        seen: set[nn.Parameter] = set()
        groups = []
        for name in self.parts:
            for group in self._part(name).parameter_groups():
                own = [parameter for parameter in group["params"] if parameter not in seen]
                seen.update(own)
                if own:
                    groups.append({**group, "params": own})
        return groups

    def embedder(self) -> Embedder:
        return self._leader.embedder()

    def cluster_logits(self, images: torch.Tensor) -> torch.Tensor:
        return self._leader.cluster_logits(images)

    def classifier(self) -> Classifier | None:
        return self._leader.classifier()
