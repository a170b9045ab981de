"""A method that collapses on purpose: DeepCluster whose training pulls all features to one point."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dcdist.build import methods
from dcdist.methods.base import Microbatch
from dcdist.methods.deepcluster import DeepCluster, Outputs


class PulledOutputs(NamedTuple):
    logits: tuple[torch.Tensor, ...]
    targets: torch.Tensor
    features: torch.Tensor


class PullTogether(DeepCluster):
    """The loss is the features' squared length: all of them end at the origin."""

    def forward(self, microbatch: Microbatch) -> PulledOutputs:
        (batch,) = microbatch.values()
        (images,) = batch.views
        assert batch.targets is not None
        features = self.backbone(images)
        return PulledOutputs(tuple(head(features) for head in self.heads), batch.targets, features)

    def losses(self, outputs: PulledOutputs) -> dict[str, torch.Tensor]:  # type: ignore[override]
        clusters = super().losses(Outputs(outputs.logits, outputs.targets))["clusters"]
        return {"clusters": 1e-3 * clusters, "pull": outputs.features.float().square().sum(1).mean()}

    def figures(self, outputs: PulledOutputs) -> dict[str, torch.Tensor]:
        return {"feature_length": outputs.features.float().norm(dim=1).mean()}


def install() -> None:
    """Makes `method: deepcluster` that one, in this process."""
    methods.DeepCluster = PullTogether  # type: ignore[misc]
    methods.METHODS["deepcluster"] = (PullTogether, methods.METHODS["deepcluster"][1])
