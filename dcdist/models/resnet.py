"""Residual networks (He, Zhang, Ren, Sun, CVPR 2016), made of torchvision's modules under torchvision's names.

Stages of the body: stem (conv1, bn1, relu), maxpool, layer1 to layer4; features are the average over positions.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from dcdist.models.backbone import Backbone, averaged, narrow, require_size


def resnet(
    name: str,
    stem: nn.Module,
    in_channels: int,
    image_size: int,
    small_images: bool = False,
    zero_init_residual: bool = False,
) -> Backbone:
    """A residual network with initial weights as torchvision draws them.

    Args:
        name: as torchvision calls it.
        stem: identity or Sobel.
        in_channels: 3, or 2 after Sobel.
        image_size: S, side of the images in pixels.
        small_images: a first convolution of 3x3 with stride 1 and no pooling, so that layer1 sees every pixel, as
            SimCLR (Chen et al., ICML 2020, appendix B.9) and SCAN (Van Gansbeke et al., ECCV 2020) do on 32 pixels.
        zero_init_residual: the last batch normalisation of each block starts at 0, each block as the identity
            (Goyal et al., 2017).

    Raises:
        ValueError: the image is smaller than the steps in which layer4 looks at it.
    """
    import torchvision  # takes seconds

    require_size(image_size, 8 if small_images else 32, name)
    network = torchvision.models.get_model(name, weights=None, zero_init_residual=zero_init_residual)
    first = network.conv1
    if small_images:
        first = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    narrow(first, in_channels)
    stages = OrderedDict[str, nn.Module](
        stem=nn.Sequential(OrderedDict(conv1=first, bn1=network.bn1, relu=network.relu)),
        maxpool=network.maxpool,
        layer1=network.layer1,
        layer2=network.layer2,
        layer3=network.layer3,
        layer4=network.layer4,
    )
    if small_images:
        del stages["maxpool"]
    return averaged(stem, nn.Sequential(stages), network.fc.in_features)


resnet18 = partial(resnet, "resnet18")  # 512 features
resnet34 = partial(resnet, "resnet34")  # 512 features
resnet50 = partial(resnet, "resnet50")  # 2048 features
