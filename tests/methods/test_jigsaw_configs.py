"""Jigsaw methods as the configs build them, and the configs that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dcdist.build.methods import Samples, build_method
from dcdist.config.load import load_config
from dcdist.errors import UsageError
from dcdist.methods.jigsaw import Jigsaw
from dcdist.models.backbone import Backbone, averaged, convolution

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "num_classes", "cell", "tile"),
    [
        ("catsdogs/jigsaw", 50, 16, 12),
        ("catsdogs/jigsaw_context_tricks", 200, 16, 12),
        ("catsdogs/jigsaw_distractors", 50, 16, 12),
        ("jigsaw_alexnet_imagenet", 1000, 170, 128),
        ("jigsaw_resnet50_imagenet", 2000, 85, 64),
    ],
)
def test_configs_build(name: str, num_classes: int, cell: int, tile: int) -> None:
    (stage,) = load_config(CONFIGS / f"{name}.yaml").resolved_stages()
    jigsaw = build_method(stage, network_with_maps(stage.jigsaw.pool), 1, SAMPLES)
    assert isinstance(jigsaw, Jigsaw)
    assert jigsaw.head.num_classes == num_classes
    assert jigsaw.view.tiles is not None
    assert (jigsaw.view.size // 3, jigsaw.view.tiles.size) == (cell, tile)
    assert (jigsaw.view.augmentation.grayscale_probability, jigsaw.view.crop) == (
        0.66 if "resnet50" in name else 0.3,
        "random_resized",
    )


def network_with_maps(side: int) -> Backbone:
    return averaged(nn.Identity(), nn.Sequential(convolution(3, 8), nn.AdaptiveAvgPool2d(side)), 8)


SAMPLES = Samples(num_samples=10, own=range(10), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["jigsaw.tile_size=17"], r"jigsaw\.tile_size=17 does not fit a cell.*jigsaw\.tile_size to at most 16"),
        (["jigsaw.predict_distractors=true"], r"needs distractors: set jigsaw\.num_distractors"),
        (["jigsaw.num_distractors=9"], r"jigsaw\.num_distractors"),
        (["jigsaw.num_permutations=362881"], r"jigsaw\.num_permutations"),
    ],
)
def test_configs_that_cannot_work_are_refused_before_anything_is_started(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(CONFIGS / "catsdogs/jigsaw.yaml", overrides)


def test_a_network_that_does_not_fit_is_a_wrong_config() -> None:
    (stage,) = load_config(CONFIGS / "catsdogs/jigsaw.yaml").resolved_stages()
    with pytest.raises(UsageError, match=r"stage jigsaw: the network's map .* set jigsaw\.pool to at most 1"):
        build_method(stage, network_with_maps(1), 1, SAMPLES)
