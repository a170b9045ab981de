"""What every backbone is: images in, rows to cluster out.

Shapes: B images, S side in pixels, D features.
"""

from __future__ import annotations

import torch
from torch import nn


class Backbone(nn.Module):
    """A stem (identity or Sobel) and a trunk.

    Attributes:
        num_features: D, the width of what `forward` returns.
        features_before_relu: whether the features are those before a last ReLU, which a head then applies first
            (DeepCluster clusters fc7 before its ReLU and classifies after it).
    """

    def __init__(self, stem: nn.Module, trunk: nn.Module, num_features: int, features_before_relu: bool) -> None:
        super().__init__()
        self.stem = stem
        self.trunk = trunk
        self.num_features = num_features
        self.features_before_relu = features_before_relu

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, S, S] -> features [B, D]."""
        features: torch.Tensor = self.trunk(self.stem(images))
        return features


def initialise_published(module: nn.Module) -> None:
    """The initialisation of the published DeepCluster networks.

    Convolutions N(0, sqrt(2 / (kernel area * output channels))), linear layers N(0, 0.01), biases 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
