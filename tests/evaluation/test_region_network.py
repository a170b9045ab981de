"""Faster R-CNN's parts: a backbone divided is still the backbone; regions and anchors lie where they should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.augment import Normalization
from dcdist.errors import UsageError
from dcdist.evaluation.fine_tuning import ALL, FC68, set_trained
from dcdist.evaluation.map_geometry import MapGeometry
from dcdist.evaluation.region_network import (
    RegionOptions,
    _PlacedAnchors,
    _PlacedRoIAlign,
    fully_connected_side,
    region_network,
    region_parts,
)
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics

CPU = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)


def network(name: str, image_size: int, sobel: bool = False) -> Backbone:
    return build_backbone(ModelSection(name=name, sobel=sobel), image_size, seed=0).eval()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("name", "image_size", "side"),
    [("alexnet", 96, 2), ("vgg16", 64, 2), ("resnet18", 64, None), ("small_resnet", 32, None)],
)
def test_the_side_that_fc6_takes(name: str, image_size: int, side: int | None) -> None:
    assert fully_connected_side(network(name, image_size)) == side


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_pooled_regions_pass_through_the_networks_own_layers(name: str) -> None:
    backbone = network(name, 96, sobel=True)
    parts = region_parts(backbone)
    images = torch.randn(2, 3, 96, 96)
    maps = parts.body(backbone.stem(images))
    assert maps.shape[1] == parts.num_channels
    pooled = list(backbone.body.children())[-1](maps)
    assert pooled.shape[2:] == (parts.side, parts.side)
    torch.testing.assert_close(parts.head(pooled), backbone(images).clamp(min=0))
    assert parts.num_features == 4096


def test_a_published_network_of_torchvision_is_divided_alike() -> None:
    backbone = network("torchvision/alexnet", 224)
    parts = region_parts(backbone)
    images = torch.randn(1, 3, 224, 224)
    maps = parts.body(images)
    assert maps.shape == (1, 256, 13, 13), "before the last pooling"
    pooled = nn.MaxPool2d(3, 2)(maps)
    assert parts.side == pooled.shape[2] == 6
    torch.testing.assert_close(parts.head(pooled), backbone(images))


def test_residual_networks_are_divided_at_layer3() -> None:
    backbone = network("resnet18", 64)
    parts = region_parts(backbone)
    images = torch.randn(2, 3, 64, 64)
    maps = parts.body(images)
    assert (maps.shape, parts.num_channels, parts.side) == ((2, 256, 4, 4), 256, 14)
    torch.testing.assert_close(parts.head(maps), backbone(images))


def test_other_networks_get_new_layers() -> None:
    parts = region_parts(network("small_convnet", 32))
    assert parts.head(torch.randn(3, 128, 7, 7)).shape == (3, parts.num_features)


@pytest.mark.parametrize("geometry", [MapGeometry(16, 15.0), MapGeometry(16, 0.0), MapGeometry(8, 3.5)])
def test_regions_are_pooled_where_the_geometry_puts_them(geometry: MapGeometry) -> None:
    """Of a map whose values are the columns that positions see, a region's mean is the middle of its box."""
    columns = geometry.offset + geometry.stride * torch.arange(30.0)
    maps = columns.expand(1, 1, 30, 30)
    boxes = torch.tensor([[100.0, 90.0, 140.0, 150.0], [64.0, 64.0, 68.0, 68.0]])  # edges of pixels
    regions = _PlacedRoIAlign(4, geometry)({"0": maps}, [boxes], [])
    assert regions.shape == (2, 1, 4, 4)
    # Pixels 100 to 139 and 64 to 67.
    assert regions.mean((1, 2, 3)).tolist() == pytest.approx([119.5, 65.5], abs=1e-3)
    width_of_a_bin = 40 / 4
    assert regions[0, 0, 0].diff().tolist() == pytest.approx([width_of_a_bin] * 3, abs=1e-3)


def test_anchors_lie_around_the_pixels_that_positions_see() -> None:
    anchors = _PlacedAnchors([32.0, 64.0], MapGeometry(16, 15.0))
    (placed,) = anchors.grid_anchors([[2, 3]], [None])
    assert placed.shape == (2 * 3 * 6, 4)
    centres = (placed[:, :2] + placed[:, 2:]) / 2
    # The pixel 15 lies between the edges 15 and 16.
    assert centres[::6].tolist() == [[15.5 + 16 * x, 15.5 + 16 * y] for y in range(2) for x in range(3)]


def test_images_are_seen_as_the_run_sees_them() -> None:
    normalization = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    detector = region_network(network("small_convnet", 32), 20, normalization, CPU, RegionOptions((64,)))
    image = torch.rand(3, 64, 80)
    seen, _ = detector.transform.eval()([image])
    torch.testing.assert_close(seen.tensors[0, :, :64, :80], normalization(image[None])[0])


def test_a_network_without_a_map_is_refused() -> None:
    with pytest.raises(UsageError, match="no map of positions"):
        region_network(network("torchvision/vit_b_32", 32), 20, Normalization(), CPU, RegionOptions())


def test_what_is_trained_of_a_residual_network() -> None:
    backbone = network("resnet18", 64)
    detector = region_network(backbone, 20, Normalization(), CPU, RegionOptions())
    set_trained(detector, backbone, FC68)
    trained = {name for name, value in detector.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"rpn", "roi_heads"}
    assert all("predictor" in name for name in trained if name.startswith("roi_heads")), "layer4 is frozen"
    set_trained(detector, backbone, ALL, frozen_convolutions=1)
    frozen = {name for name, value in detector.named_parameters() if not value.requires_grad}
    assert frozen == {f"backbone.part.body.stem.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")}
