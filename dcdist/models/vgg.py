"""VGG-16 with batch normalisation, as DeepCluster trains it: one dropout, features are fc7 before its ReLU."""

from __future__ import annotations

from torch import nn

from dcdist.models.backbone import Backbone, initialise_published

# output channels of the 3x3 convolutions; 0 is a max pooling of 2
CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16(stem: nn.Module, in_channels: int, image_size: int) -> Backbone:
    """Thirteen convolutions, fc6 and fc7 (Simonyan and Zisserman, 2015, configuration D).

    Raises:
        ValueError: the image is too small for the five poolings.
    """
    if image_size < 32:
        raise ValueError(f"views.image_size={image_size} is too small for vgg16; the smallest is 32, published is 224")
    layers: list[nn.Module] = []
    for channels in CHANNELS:
        if channels == 0:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(in_channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            in_channels = channels
    side = image_size // 32
    trunk = nn.Sequential(
        nn.Sequential(*layers),
        nn.Flatten(),
        nn.Linear(in_channels * side * side, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
    )
    initialise_published(trunk)
    return Backbone(stem, trunk, num_features=4096, features_before_relu=True)
