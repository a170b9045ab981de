"""Small networks for small images: batch normalisation everywhere and global average pooling, no bare linear layer.

On a few thousand images a linear layer with ReLU and no normalisation loses the rank of its features within epochs.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from dcdist.models.backbone import Backbone, averaged, convolution, require_size


def _convolution(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return convolution(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a projection (He et al., 2016); halves the resolution where stride is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(in_channels, out_channels, stride=stride)
        self.second = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(self.first(inputs)) + self.shortcut(inputs))


def small_convnet(stem: nn.Module, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """Four convolutions for glyphs of about 32 pixels; features are the average over positions, 128 at width 1.

    Raises:
        ValueError: the image is too small for the three halvings.
    """
    require_size(image_size, 8, "small_convnet")
    w1, w2, w3 = (round(channels * width) for channels in (32, 64, 128))
    stages = OrderedDict[str, nn.Module](
        conv1=_convolution(in_channels, w1, kernel=5, stride=2),
        conv2=_convolution(w1, w2),
        pool2=nn.MaxPool2d(2),
        conv3=_convolution(w2, w3),
        pool3=nn.MaxPool2d(2),
        conv4=_convolution(w3, w3),
    )
    return averaged(stem, nn.Sequential(stages), w3)


def small_resnet(stem: nn.Module, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """Two convolutions and two residual blocks for photographs of about 32 pixels; 256 features at width 1.

    Raises:
        ValueError: the image is too small for the three halvings.
    """
    require_size(image_size, 8, "small_resnet")
    w1, w2, w3, w4 = (round(channels * width) for channels in (32, 64, 128, 256))
    stages = OrderedDict[str, nn.Module](
        conv1=_convolution(in_channels, w1),
        pool1=nn.MaxPool2d(2),
        conv2=_convolution(w1, w2),
        block1=ResidualBlock(w2, w3, stride=2),
        block2=ResidualBlock(w3, w4, stride=2),
    )
    return averaged(stem, nn.Sequential(stages), w4)


def strided_resnet(stem: nn.Module, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """One convolution of stride 2 and three residual blocks: no layer at full resolution, which costs most on a CPU.

    For photographs of about 24 to 32 pixels; 256 features at width 1.

    Raises:
        ValueError: the image is too small for the three halvings.
    """
    require_size(image_size, 8, "strided_resnet")
    w1, w2, w3 = (round(channels * width) for channels in (64, 128, 256))
    stages = OrderedDict[str, nn.Module](
        conv1=convolution(in_channels, w1, 4, 2, 1, bias=False),
        block1=ResidualBlock(w1, w1, stride=1),
        block2=ResidualBlock(w1, w2, stride=2),
        block3=ResidualBlock(w2, w3, stride=2),
    )
    return averaged(stem, nn.Sequential(stages), w3)
