"""AlexNet with batch normalisation, as DeepCluster trains it (Caron et al., ECCV 2018)."""

from __future__ import annotations

from torch import nn

from dcdist.models.backbone import Backbone, initialise_published

# (output channels, kernel, stride, padding); "M" is a max pooling of 3 with stride 2
LAYERS: tuple[tuple[int, int, int, int] | str, ...] = (
    (96, 11, 4, 2),
    "M",
    (256, 5, 1, 2),
    "M",
    (384, 3, 1, 1),
    (384, 3, 1, 1),
    (256, 3, 1, 1),
    "M",
)


def alexnet(stem: nn.Module, in_channels: int, image_size: int) -> Backbone:
    """Five convolutions without local response normalisation, fc6 and fc7; features are fc7 before its ReLU, 4096.

    Raises:
        ValueError: the image is too small for the three poolings.
    """
    layers: list[nn.Module] = []
    side = image_size
    for layer in LAYERS:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(3, 2))
            side = (side - 3) // 2 + 1
        else:
            channels, kernel, stride, padding = layer
            layers += [
                nn.Conv2d(in_channels, channels, kernel, stride, padding),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            in_channels, side = channels, (side + 2 * padding - kernel) // stride + 1
    if side < 1:
        raise ValueError(f"views.image_size={image_size} is too small for alexnet; the least is 63, published is 224")
    trunk = nn.Sequential(
        nn.Sequential(*layers),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(in_channels * side * side, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
    )
    initialise_published(trunk)
    return Backbone(stem, trunk, num_features=4096, features_before_relu=True)
