"""Faster R-CNN on a backbone, made of torchvision's parts (Ren, He, Girshick, Sun, NIPS 2015).

Shapes: B images of H x W pixels, R regions, C channels of the map, h x w its positions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_align

from dcdist.data.augment import Normalization
from dcdist.evaluation.map_geometry import MapGeometry, map_geometry
from dcdist.models.backbone import Backbone, output_shape
from dcdist.models.numerics import Numerics

LARGEST_SIDE_RATIO = 5 / 3  # of the long side to the short one, past which images become smaller: 1000 to 600
_ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels where the short side of images is 600
_SIDE_OF_ANCHORS = 600
_SAMPLES = 2  # a bin and an axis, of RoIAlign
_NEW_WIDTH = 1024  # of the layers that a backbone without fully connected ones gets


@dataclass(frozen=True)
class RegionParts:
    """How a backbone is divided: what sees the whole image, and what sees a region of its map."""

    body: nn.Sequential  # what the stem gives -> map [B, C, h, w]
    head: nn.Module  # regions [R, C, side, side] -> [R, num_features]
    num_channels: int  # C
    side: int
    num_features: int
    description: str


def fully_connected_side(backbone: Backbone) -> int | None:
    """The side of the square of positions that fc6 takes; None where the features are averages over positions."""
    for layer in backbone.top.modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            return None
        if isinstance(layer, nn.Linear):
            return math.isqrt(layer.in_features // backbone.num_channels)
    return None


def region_parts(backbone: Backbone) -> RegionParts:
    """Divides a backbone; the parts are its own modules, and new ones where it has none that fit.

    With fully connected layers: as Fast R-CNN (Girshick, ICCV 2015) the map is the one before the last pooling, whose
    place pooling over regions takes, then fc6 and fc7. Residual networks: "C4" (He et al., CVPR 2016, appendix A), the
    map of layer3, then layer4 and the average for each region. Others: the last map, and two new layers of 1024.
    """
    stages = OrderedDict[str, nn.Module](backbone.body.named_children())
    side = fully_connected_side(backbone)
    if side is not None:
        body = _without_last_pooling(backbone.body)
        head = nn.Sequential(backbone.top, nn.ReLU() if backbone.features_before_relu else nn.Identity())
        how = f"regions of {side} x {side} before the last pooling, then the network's fully connected layers"
        return RegionParts(body, head, backbone.num_channels, side, backbone.num_features, how)
    if list(stages)[-2:] == ["layer3", "layer4"]:
        head = nn.Sequential(stages.popitem()[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        body = nn.Sequential(stages)
        num_channels = output_shape(body, (1, input_channels(body), 64, 64))[1]
        how = "C4: regions of 14 x 14 of layer3's map, then layer4 and the average"
        return RegionParts(body, head, num_channels, 14, backbone.num_channels, how)
    how = f"regions of 7 x 7 of the last map, then two new fully connected layers of {_NEW_WIDTH}"
    new = TwoMLPHead(backbone.num_channels * 7 * 7, _NEW_WIDTH)
    return RegionParts(backbone.body, new, backbone.num_channels, 7, _NEW_WIDTH, how)


def input_channels(body: nn.Module) -> int:
    """Of a network's first convolution."""
    return next(layer for layer in body.modules() if isinstance(layer, nn.Conv2d)).in_channels


def _without_last_pooling(body: nn.Sequential) -> nn.Sequential:
    stages = OrderedDict[str, nn.Module](body.named_children())
    name, last = stages.popitem()
    if isinstance(last, nn.Sequential):
        stages[name] = _without_last_pooling(last)
    elif not isinstance(last, nn.MaxPool2d):
        stages[name] = last
    return nn.Sequential(stages)


@dataclass(frozen=True)
class RegionOptions:
    """Of training and prediction; the defaults are those of Fast and Faster R-CNN on VOC."""

    short_sides: tuple[int, ...] = (600,)  # pixels; in training one of them at random, in prediction the last
    proposals_in_training: int = 2000
    proposals_in_prediction: int = 300
    regions_an_image: int = 128  # that the head is trained on, a quarter of them objects
    min_score: float = 0.01
    nms_overlap: float = 0.3
    detections_an_image: int = 100


def region_network(
    backbone: Backbone, num_classes: int, normalization: Normalization, numerics: Numerics, options: RegionOptions
) -> GeneralizedRCNN:
    """Faster R-CNN; new layers draw their weights from torch's global generator.

    In training: images (a list of float [3, H, W] in 0..1) and targets (`boxes` [n, 4] in coordinates of pixels'
    edges, `labels` [n] from 1) -> named losses. In evaluation: images -> `boxes`, `scores` and `labels` of each.

    Raises:
        UsageError: the backbone has no map of positions.
    """
    parts = region_parts(backbone)
    geometry = map_geometry(parts.body, input_channels(parts.body))
    channels = parts.num_channels
    scale = options.short_sides[-1] / _SIDE_OF_ANCHORS
    anchors = _PlacedAnchors([side * scale for side in _ANCHORS], geometry)
    proposals = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * options.proposals_in_training, "testing": 20 * options.proposals_in_prediction},
        post_nms_top_n={"training": options.proposals_in_training, "testing": options.proposals_in_prediction},
        nms_thresh=0.7,
    )
    predictor = FastRCNNPredictor(parts.num_features, num_classes + 1)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # as Fast R-CNN's
        nn.init.normal_(layer.weight, 0.0, deviation)
        nn.init.zeros_(layer.bias)
    heads = RoIHeads(
        _PlacedRoIAlign(parts.side, geometry),
        _InPrecision(parts.head, numerics),
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=options.regions_an_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=options.min_score,
        nms_thresh=options.nms_overlap,
        detections_per_img=options.detections_an_image,
    )
    trunk = nn.Sequential(OrderedDict[str, nn.Module](stem=backbone.stem, body=parts.body))
    transform = _Transform(normalization, options.short_sides)
    return GeneralizedRCNN(_InPrecision(trunk, numerics), proposals, heads, transform)


class _InPrecision(nn.Module):
    """A part in the run's precision; what surrounds it, coordinates above all, stays in float32."""

    def __init__(self, part: nn.Module, numerics: Numerics) -> None:
        super().__init__()
        self.part = part
        self._numerics = numerics

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with self._numerics.autocast():
            outputs: torch.Tensor = self.part(inputs)
        return outputs.float()


class _Transform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's resizing and padding, with the pixels as the network is used to see them."""

    def __init__(self, normalization: Normalization, short_sides: Sequence[int]) -> None:
        largest = round(max(short_sides) * LARGEST_SIDE_RATIO)
        super().__init__(list(short_sides), largest, image_mean=[], image_std=[])
        self._normalization = normalization

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        return self._normalization(image[None])[0]


class _PlacedAnchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors around the pixels that positions see; torchvision spreads them over the image from its corner."""

    def __init__(self, sides: Sequence[float], geometry: MapGeometry) -> None:
        super().__init__((tuple(sides),), ((0.5, 1.0, 2.0),))
        self._geometry = geometry

    def grid_anchors(self, grid_sizes: list[Any], strides: list[Any]) -> list[torch.Tensor]:
        placed = [[self._geometry.stride] * 2 for _ in strides]
        centre = self._geometry.offset + 0.5  # in coordinates of pixels' edges
        return [anchors + centre for anchors in super().grid_anchors(grid_sizes, placed)]


class _PlacedRoIAlign(nn.Module):
    """RoIAlign (He et al., ICCV 2017) of one map, by its own geometry; torchvision takes the map to span the image."""

    def __init__(self, side: int, geometry: MapGeometry) -> None:
        super().__init__()
        self._side = side
        self._stride = geometry.stride
        # roi_align takes the first position to lie at (stride - 1) / 2.
        self._shift = (geometry.stride - 1) / 2 - geometry.offset

    def forward(
        self, maps: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: Sequence[Any]
    ) -> torch.Tensor:
        del image_shapes
        shifted = [own + self._shift for own in boxes]
        regions: torch.Tensor = roi_align(maps["0"], shifted, self._side, 1 / self._stride, _SAMPLES, aligned=True)
        return regions
