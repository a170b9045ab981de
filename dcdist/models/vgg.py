"""VGG-16 with batch normalisation, as DeepCluster trains it: one dropout, features are fc7 before its ReLU.

Stages of the body: conv1 to conv13, whose maps are those after the ReLU, and pool2, pool4, pool7, pool10, pool13.
"""

from __future__ import annotations

from torch import nn

from dcdist.models.backbone import Backbone, convolution, initialise_published, require_size

# output channels of the 3x3 convolutions between the max poolings of 2
CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(stem: nn.Module, in_channels: int, image_size: int) -> Backbone:
    """Thirteen convolutions, fc6 and fc7 (Simonyan and Zisserman, 2015, configuration D).

    Raises:
        ValueError: the image is too small for the five poolings.
    """
    require_size(image_size, 32, "vgg16")
    body, top = nn.Sequential(), nn.Sequential()
    channels, number = in_channels, 0
    for group in CHANNELS:
        for out_channels in group:
            number += 1
            body.add_module(f"conv{number}", convolution(channels, out_channels))
            channels = out_channels
        body.add_module(f"pool{number}", nn.MaxPool2d(2, 2))
    side = image_size // 32
    top.add_module("flatten", nn.Flatten())
    top.add_module("fc6", nn.Linear(channels * side * side, 4096))
    top.add_module("relu6", nn.ReLU(inplace=True))
    top.add_module("dropout7", nn.Dropout(0.5))
    top.add_module("fc7", nn.Linear(4096, 4096))
    initialise_published(body)
    initialise_published(top)
    return Backbone(stem, body, top, channels, num_features=4096, features_before_relu=True)
