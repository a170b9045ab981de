"""What methods put behind a backbone to compare images with each other and with prototypes.

Shapes: B images, D features of the backbone, E of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from dcdist.models.backbone import Backbone


class Projector(nn.Module):
    """A multi-layer perceptron with batch normalisation; its outputs have length 1.

    Args:
        num_features: D.
        hidden: width of the hidden layer; None for a linear map.
        dimensions: E.
        relu_first: whether the features are those before a last ReLU (Backbone.features_before_relu).
    """

    def __init__(self, num_features: int, hidden: int | None, dimensions: int, relu_first: bool) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.relu_first = relu_first
        self.layers: nn.Module = nn.Linear(num_features, dimensions)
        if hidden is not None:
            self.layers = nn.Sequential(
                nn.Linear(num_features, hidden, bias=False),
                nn.BatchNorm1d(hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, dimensions),
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, D] -> float32 rows of length 1 [B, E]."""
        inputs = functional.relu(features) if self.relu_first else features
        return functional.normalize(self.layers(inputs).float(), dim=1)


class ProjectedBackbone(nn.Module):
    """Images in, embedding out: what fills a bank before training has. Shares both modules' parameters."""

    def __init__(self, backbone: Backbone, projector: Projector) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.num_features = projector.dimensions

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, S, S] -> [B, E]."""
        rows: torch.Tensor = self.projector(self.backbone(images))
        return rows


def embed_views(backbone: Backbone, projector: Projector, views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images [B, 3, S, S] of each of V views -> embeddings [B, V, E].

    Neighbours of equal size pass the backbone, and all views the projector, in one batch: that is faster, and batch
    normalisation sees them together, as the published codes do.
    """
    features: list[torch.Tensor] = []
    start = 0
    for stop in range(1, len(views) + 1):
        if stop == len(views) or views[stop].shape != views[start].shape:
            features.append(backbone(torch.cat(list(views[start:stop]))))
            start = stop
    rows: torch.Tensor = projector(torch.cat(features))
    return torch.stack(rows.chunk(len(views)), dim=1)
