"""Where in an image the positions of a feature map lie, and how scores there become scores of pixels.

Pixels and positions count from 0, coordinates are of their centres. Shapes: B images, h x w positions, H x W pixels.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import nn

from dcdist.errors import UsageError
from dcdist.models.backbone import output_shape

_SIDE = 256  # pixels from which on sides are tried
_LARGEST_STRIDE = 128


@dataclass(frozen=True)
class MapGeometry:
    """Along either axis the i-th position sees the pixels around offset + i * stride."""

    stride: float
    offset: float


def map_geometry(network: nn.Module, in_channels: int) -> MapGeometry:
    """The geometry of the maps [B, C, h, w] that a network of convolutions makes of images [B, in_channels, H, W].

    Found from shapes alone: where n is the smallest side with m positions, the first sees from pixel 0 on and the last
    up to pixel n - 1, what is padded left and right cancelling out, so their mean lies at (n - 1) / 2.

    Raises:
        UsageError: the network takes images of one size only, or its maps have one position.
    """

    def positions(side: int) -> int:
        return output_shape(network, (1, in_channels, side, side))[-1]

    sides = range(_SIDE, _SIDE + 3 * _LARGEST_STRIDE)
    try:
        count = positions(_SIDE) + 1
        first, second = (sides[bisect_left(sides, wanted, key=positions)] for wanted in (count, count + 1))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"this network has no map of positions for images of any size ({str(error).splitlines()[0]}): detection "
            "and segmentation need a convolutional one"
        ) from error
    stride = second - first
    return MapGeometry(stride, (first - 1) / 2 - (count - 1) * stride / 2)


def interpolation_weights(geometry: MapGeometry, num_positions: int, num_pixels: int) -> torch.Tensor:
    """[num_pixels, num_positions] float32, rows of sum 1: what each pixel takes of each position along one axis.

    Linear between the centres of two positions; outside of all of them the nearest one's.
    """
    places = (torch.arange(num_pixels, dtype=torch.float64) - geometry.offset) / geometry.stride
    distances = (places.clamp(0, num_positions - 1)[:, None] - torch.arange(num_positions)).abs()
    return (1 - distances).clamp(min=0).float()


def upsample(scores: torch.Tensor, height: int, width: int, geometry: MapGeometry) -> torch.Tensor:
    """Scores [B, C, h, w] of positions -> [B, C, H, W] of pixels: bilinear, positions being where the geometry says."""
    rows = interpolation_weights(geometry, scores.shape[2], height).to(scores)
    columns = interpolation_weights(geometry, scores.shape[3], width).to(scores)
    return rows @ (scores @ columns.T)
