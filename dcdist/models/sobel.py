"""The fixed stem of DeepCluster: grey-scale, then horizontal and vertical Sobel filters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

HORIZONTAL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
VERTICAL = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))


class Sobel(nn.Module):
    """Normalised images [B, 3, S, S] -> edges [B, 2, S, S], zero-padded, without parameters.

    The mean over the colours and the two filters are linear, so the published pair of convolutions (1x1 of 1/3,
    then 3x3) is this one.
    """

    weight: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = torch.tensor((HORIZONTAL, VERTICAL)).unsqueeze(1)  # [2, 1, 3, 3]
        self.register_buffer("weight", filters, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # In full precision: differences of neighbouring pixels are what low-precision inputs lose.
        with torch.autocast(images.device.type, enabled=False):
            grey = images.float().mean(1, keepdim=True)
            return functional.conv2d(grey, self.weight, padding=1)
