"""AlexNet with batch normalisation, as DeepCluster trains it (Caron et al., ECCV 2018).

Stages of the body: conv1 to conv5, whose maps are those after the ReLU, and pool1, pool2, pool5.
"""

from __future__ import annotations

from torch import nn

from dcdist.models.backbone import Backbone, convolution, initialise_published, require_size

# stage: (output channels, kernel, stride, padding); None is a max pooling of 3 with stride 2
STAGES: dict[str, tuple[int, int, int, int] | None] = {
    "conv1": (96, 11, 4, 2),
    "pool1": None,
    "conv2": (256, 5, 1, 2),
    "pool2": None,
    "conv3": (384, 3, 1, 1),
    "conv4": (384, 3, 1, 1),
    "conv5": (256, 3, 1, 1),
    "pool5": None,
}


def alexnet(stem: nn.Module, in_channels: int, image_size: int) -> Backbone:
    """Five convolutions without local response normalisation, fc6 and fc7; features are fc7 before its ReLU, 4096.

    Raises:
        ValueError: the image is too small for the three poolings.
    """
    require_size(image_size, 63, "alexnet")
    body, top = nn.Sequential(), nn.Sequential()
    channels, side = in_channels, image_size
    for name, stage in STAGES.items():
        if stage is None:
            body.add_module(name, nn.MaxPool2d(3, 2))
            side = (side - 3) // 2 + 1
        else:
            out_channels, kernel, stride, padding = stage
            body.add_module(name, convolution(channels, out_channels, kernel, stride, padding))
            channels, side = out_channels, (side + 2 * padding - kernel) // stride + 1
    top.add_module("flatten", nn.Flatten())
    top.add_module("dropout6", nn.Dropout(0.5))
    top.add_module("fc6", nn.Linear(channels * side * side, 4096))
    top.add_module("relu6", nn.ReLU(inplace=True))
    top.add_module("dropout7", nn.Dropout(0.5))
    top.add_module("fc7", nn.Linear(4096, 4096))
    initialise_published(body)
    initialise_published(top)
    return Backbone(stem, body, top, channels, num_features=4096, features_before_relu=True)
