"""What the card says of networks that no small run has."""

from __future__ import annotations

import pytest

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.export.card import pooling


@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [
        ("alexnet", 64, "none"),
        ("small_convnet", 32, "average"),
        ("torchvision/mobilenet_v3_small", 64, "average"),
        ("torchvision/alexnet", 64, "average to 6 x 6"),
        ("torchvision/vit_b_32", 64, "class token"),
    ],
)
def test_pooling(name: str, image_size: int, expected: str) -> None:
    assert pooling(build_backbone(ModelSection(name=name), image_size, seed=0)) == expected
