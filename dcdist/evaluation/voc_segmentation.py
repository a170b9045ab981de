"""Semantic segmentation of PASCAL VOC by a fully convolutional network that is trained further.

After Long, Shelhamer, Darrell (CVPR 2015): scores of the last map's positions, bilinear between them (their FCN-32s).
Shapes: B images, H x W pixels, h x w positions of a map, S pixels a side of a crop, R = 21 classes with the background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.fcn import FCNHead

from dcdist.data.augment import Normalization, to_float
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.voc import VocImage
from dcdist.data.voc_objects import IGNORED, NUM_REGIONS, read_mask
from dcdist.distributed.seeding import derive_seed, numpy_generator
from dcdist.errors import RunError
from dcdist.evaluation.fine_tuning import Recipe, fine_tune, set_trained, training_batches
from dcdist.evaluation.map_geometry import map_geometry, upsample
from dcdist.evaluation.region_network import fully_connected_side, input_channels
from dcdist.evaluation.segmentation_scores import Confusion
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics

RECIPE = Recipe(20_000, 16, 0.003, 1e-4, power=0.9)
CROP_SIZE = 384
_SCALES = (0.5, 2.0)  # of the image before a crop is taken, as torchvision trains its segmentation networks

Example = tuple[torch.Tensor, torch.Tensor]  # uint8 [H, W, 3] and [H, W]


@dataclass(frozen=True)
class WholePicture:
    """An image and its mask, for SeededExamples."""

    def __call__(self, image: VocImage, seed: int) -> Example:
        del seed
        pixels = image.pixels()
        return torch.from_numpy(pixels), torch.from_numpy(read_mask(image, *pixels.shape[:2]))


@dataclass(frozen=True)
class RandomWindow:
    """A window of S x S pixels of the randomly scaled and mirrored image, with its mask, for SeededExamples.

    Where the image is smaller than the window, what is missing has its mean colour and counts for nothing.
    """

    size: int

    def __call__(self, image: VocImage, seed: int) -> Example:
        pixels, mask = WholePicture()(image, seed)
        generator = numpy_generator(seed)
        scale, down, right, mirror = generator.random(4).tolist()
        factor = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * scale
        size = [max(1, round(side * factor)) for side in mask.shape]
        pixels = F.interpolate(pixels[None].permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
        mask = F.interpolate(mask[None, None], size, mode="nearest-exact")
        top, left = (int(share * max(0, side - self.size + 1)) for share, side in zip((down, right), size, strict=True))
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        pixels, mask = pixels[window], mask[window]
        if mirror < 0.5:
            pixels, mask = pixels.flip(3), mask.flip(3)
        height, width = mask.shape[2:]
        canvas = pixels.float().mean((2, 3), keepdim=True).to(torch.uint8).repeat(1, 1, self.size, self.size)
        canvas[..., :height, :width] = pixels
        missing = (0, self.size - width, 0, self.size - height)
        return canvas[0].permute(1, 2, 0), F.pad(mask, missing, value=IGNORED)[0, 0]


@dataclass(frozen=True)
class SegmentationData:
    """Images and masks that are trained on, and those that are scored."""

    train: SeededExamples
    test: SeededExamples
    normalization: Normalization


class SegmentationNetwork(nn.Module):
    """Images [B, 3, H, W] -> a logit for each class and pixel [B, R, H, W].

    A backbone with fully connected layers keeps them, as convolutions over positions: fc6 with a kernel of its k x k
    inputs, padded by k // 2, fc7 as one of 1 x 1; then a new one for the classes. Any other gets torchvision's FCNHead.
    New layers draw their weights from torch's global generator.

    Raises:
        UsageError: the backbone has no map of positions.
    """

    def __init__(self, backbone: Backbone, normalization: Normalization, numerics: Numerics) -> None:
        super().__init__()
        self.stem = backbone.stem
        self.scores = nn.Sequential(OrderedDict[str, nn.Module](body=backbone.body, head=_head(backbone)))
        self._geometry = map_geometry(self.scores, input_channels(backbone.body))
        self._normalization = normalization
        self._numerics = numerics

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self._numerics.autocast():
            scores = self.scores(self.stem(self._normalization(images)))
        return upsample(scores.float(), images.shape[2], images.shape[3], self._geometry)


def describe_head(backbone: Backbone) -> str:
    """How the scores are made, for a report."""
    if fully_connected_side(backbone) is None:
        return "torchvision's FCNHead on the last map"
    return "the fully connected layers as convolutions, then a new one (FCN-32s)"


def _head(backbone: Backbone) -> nn.Sequential:
    side = fully_connected_side(backbone)
    if side is None:
        head = FCNHead(backbone.num_channels, NUM_REGIONS)
        _initialised(head[-1])
        return head  # type: ignore[no-any-return]
    layers: list[nn.Module] = []
    channels, kernel = backbone.num_channels, side
    for layer in backbone.top.modules():
        if isinstance(layer, nn.Linear):
            layers.append(_as_convolution(layer, channels, kernel))
            channels, kernel = layer.out_features, 1
        elif not isinstance(layer, nn.Sequential | nn.Flatten | nn.AdaptiveAvgPool2d):
            layers.append(layer)
    if backbone.features_before_relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, _initialised(nn.Conv2d(channels, NUM_REGIONS, 1)))


def _initialised(score: nn.Conv2d) -> nn.Conv2d:
    assert score.bias is not None
    nn.init.normal_(score.weight, 0.0, 0.01)
    nn.init.zeros_(score.bias)
    return score


def _as_convolution(layer: nn.Linear, in_channels: int, kernel: int) -> nn.Conv2d:
    """The same weights over every square of kernel x kernel positions."""
    convolution = nn.Conv2d(in_channels, layer.out_features, kernel, padding=kernel // 2)
    with torch.no_grad():
        convolution.weight.copy_(layer.weight.view_as(convolution.weight))
        convolution.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return convolution


def measure_segmentation(
    backbone: Backbone,
    data: SegmentationData,
    recipe: Recipe,
    mode: str,
    numerics: Numerics,
    seed: int,
    *,
    frozen_convolutions: int = 0,
    progress: Callable[[str], None] = lambda _line: None,
) -> Confusion:
    """Trains a copy of the backbone with a head that scores pixels, and counts what it calls those of test images.

    The loss is cross-entropy, a mean over the pixels that are not IGNORED.

    Args:
        backbone: stays as it is.
        data: images and masks.
        recipe: of the training.
        mode: FC68 (the convolutions are frozen) or ALL.
        numerics: device, precision and memory layout.
        seed: of new layers, the order, the windows and dropout.
        frozen_convolutions: of ALL, so many first convolutions stay as they are.
        progress: takes lines about the training.

    Raises:
        UsageError: the backbone has no map of positions.
        RunError: the loss or a score is not finite.
    """
    own = deepcopy(backbone)
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, "new layers"))
        network = SegmentationNetwork(own, data.normalization, numerics)
    numerics.place(network)
    set_trained(network, own, mode, frozen_convolutions)

    def loss_of(batch: list[tuple[int, Example]]) -> torch.Tensor:
        pixels = torch.stack([window for _, (window, _) in batch]).to(numerics.device, non_blocking=True)
        masks = torch.stack([mask for _, (_, mask) in batch]).to(numerics.device, non_blocking=True)
        total = F.cross_entropy(network(to_float(pixels)), masks.long(), ignore_index=IGNORED, reduction="sum")
        return total / (masks != IGNORED).sum().clamp(min=1)  # windows without any pixel that counts: no gradient

    fine_tune(loss_of, network.parameters(), training_batches(data.train, recipe, seed), recipe, seed, progress)
    return _confusion(network, data.test, numerics)


@torch.no_grad()
def _confusion(network: nn.Module, test: SeededExamples, numerics: Numerics) -> Confusion:
    network.eval()
    confusion = Confusion(NUM_REGIONS, IGNORED)
    for _, (pixels, mask) in test.load((index, 0) for index in range(len(test))):
        logits = network(to_float(pixels[None].to(numerics.device, non_blocking=True)))
        if not logits.isfinite().all():
            raise RunError("the trained network's scores are not finite: take a lower --learning-rate")
        confusion.add(mask.numpy(), logits.argmax(1)[0].cpu().numpy().astype(np.int64))
    return confusion
