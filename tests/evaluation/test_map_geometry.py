"""Where a map's positions lie: by hand, by what averages of a ramp say, and as torchvision interpolates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.errors import UsageError
from dcdist.evaluation.map_geometry import MapGeometry, interpolation_weights, map_geometry, upsample


@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [
        ("alexnet", 63, MapGeometry(32, 31.0)),  # conv1 3 + 4i; pool1 7 + 8i; pool2 15 + 16i; pool5 31 + 32i
        ("vgg16", 32, MapGeometry(32, 15.5)),  # five poolings of 2 x 2 without overlap
        ("resnet18", 64, MapGeometry(32, 0.0)),  # everything padded by half of its kernel
        ("small_convnet", 32, MapGeometry(8, 3.0)),  # conv 2i; pool 1 + 4i; pool 3 + 8i
    ],
)
def test_networks_by_hand(name: str, image_size: int, expected: MapGeometry) -> None:
    backbone = build_backbone(ModelSection(name=name), image_size, seed=0)
    assert map_geometry(backbone.body, 3) == expected


def averages(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Poolings of (kernel, stride, padding), whose outputs are the means of where they look."""
    return nn.Sequential(*(nn.AvgPool2d(*layer) for layer in layers))


@pytest.mark.parametrize(
    "layers", [((3, 2, 0),), ((5, 4, 2), (3, 2, 0), (2, 2, 0)), ((2, 1, 1), (3, 1, 1)), ((6, 3, 3), (2, 2, 1))]
)
def test_a_position_sees_around_where_the_geometry_says(layers: tuple[tuple[int, int, int], ...]) -> None:
    """On a picture whose pixels are their own column numbers an average is the place that was looked at."""
    network = averages(*layers)
    geometry = map_geometry(network, 1)
    ramp = torch.arange(200.0).expand(1, 1, 200, 200)
    maps = network(ramp)[0, 0]
    places = maps[len(maps) // 2]
    expected = geometry.offset + geometry.stride * torch.arange(len(places))
    inner = slice(len(places) // 4, -len(places) // 4)  # what is padded is not part of the ramp
    assert places[inner].tolist() == pytest.approx(expected[inner].tolist(), abs=1e-3)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_upsampling_is_torchs_where_cells_fill_the_image(stride: int) -> None:
    scores = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    ours = upsample(scores, 5 * stride, 7 * stride, MapGeometry(stride, (stride - 1) / 2))
    theirs = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_upsampling_is_torchs_where_corners_are_aligned() -> None:
    scores = torch.randn(1, 2, 5, 9, generator=torch.Generator().manual_seed(1))
    ours = upsample(scores, 13, 25, MapGeometry(3, 0.0))
    theirs = F.interpolate(scores, (13, 25), mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_weights_by_hand() -> None:
    """Two positions, at the pixels 1 and 5: those outside take the nearer one."""
    weights = interpolation_weights(MapGeometry(4, 1.0), 2, 7)
    assert weights[:, 1].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert weights.sum(1).tolist() == [1.0] * 7


def test_a_network_without_a_map_is_refused() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(UsageError, match="no map of positions"):
        map_geometry(pooled, 3)
    transformer = build_backbone(ModelSection(name="torchvision/vit_b_32"), 64, seed=0)
    with pytest.raises(UsageError, match="Wrong image height"):
        map_geometry(transformer.body, 3)
