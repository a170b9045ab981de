"""Segmentation: windows agree with their masks, layers stay the network's own, and a picture is learnt by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.augment import Normalization
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.voc import VocImage
from dcdist.data.voc_objects import IGNORED
from dcdist.evaluation.fine_tuning import ALL, FC68, Recipe
from dcdist.evaluation.voc_segmentation import (
    RandomWindow,
    SegmentationData,
    SegmentationNetwork,
    WholePicture,
    measure_segmentation,
)
from dcdist.models.numerics import Numerics
from tests.voc_devkit import BOX, HEIGHT, WIDTH, make_voc

CPU = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)
NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> VocImage:
    """Of the class 4, whose colour is far from the grey around it."""
    return VocImage(make_voc(tmp_path_factory.mktemp("voc")) / "VOC2007", "000004")


def test_a_whole_picture_is_as_it_lies_there(image: VocImage) -> None:
    pixels, mask = WholePicture()(image, 0)
    assert (pixels.shape, mask.shape) == ((HEIGHT, WIDTH, 3), (HEIGHT, WIDTH))
    assert mask[BOX[1] + 3, BOX[0] + 3] == 4


def test_windows_agree_with_their_masks(image: VocImage) -> None:
    """Where the mask says the class, the colour is the object's; where it says background, it is grey."""
    colour = WholePicture()(image, 0)[0][HEIGHT // 2, WIDTH // 2].float()
    shapes, flipped = set(), set()
    for seed in range(20):
        pixels, mask = RandomWindow(30)(image, seed)
        assert (pixels.shape, mask.shape) == ((30, 30, 3), (30, 30))
        assert set(mask.unique().tolist()) <= {0, 4, IGNORED}
        far = (pixels.float() - colour).abs().amax(2)
        if (mask == 4).any():
            assert far[mask == 4].float().quantile(0.9) < 40
        if (mask == 0).any():
            assert far[mask == 0].float().quantile(0.1) > 60
        shapes.add(int((mask == IGNORED).sum()))
        flipped.add(bool((mask == 0).any()))
    assert len(shapes) > 10
    assert torch.equal(RandomWindow(30)(image, 3)[0], RandomWindow(30)(image, 3)[0])


def test_a_window_larger_than_the_image_counts_what_is_there(image: VocImage) -> None:
    pixels, mask = RandomWindow(200)(image, 0)
    there = mask != IGNORED
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    assert (rows[0], columns[0]) == (0, 0)
    assert 0.5 * HEIGHT <= rows[-1] + 1 <= 2 * HEIGHT
    outside = pixels[rows[-1] + 1 :].reshape(-1, 3).unique(dim=0)
    assert len(outside) == 1, "one colour, the mean"
    inside = pixels[: rows[-1] + 1, : columns[-1] + 1].float().mean((0, 1))
    assert outside[0].tolist() == pytest.approx(inside.tolist(), abs=2)


@pytest.mark.parametrize(("name", "image_size"), [("alexnet", 96), ("vgg16", 64), ("vgg16", 32)])
def test_fully_connected_layers_are_kept_as_convolutions(name: str, image_size: int) -> None:
    """Where the kernel lies on the whole map of an image of its size, it gives what the layers give."""
    backbone = build_backbone(ModelSection(name=name), image_size, seed=0).eval()
    network = SegmentationNetwork(backbone, Normalization(), CPU).eval()
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    side = backbone.map_shape(image_size)[-1]
    layers = list(network.scores.head.children())
    features = backbone.body(images)
    for layer in layers[:-1]:
        features = layer(features)
    assert features.shape == (2, 4096, *[side + 1 - side % 2] * 2)
    torch.testing.assert_close(
        features[:, :, side // 2, side // 2], backbone(images).clamp(min=0), atol=1e-5, rtol=1e-4
    )
    assert network(images).shape == (2, 21, image_size, image_size)


@pytest.mark.parametrize("size", [(97, 120), (130, 101)])
def test_scores_are_of_the_images_own_pixels(size: tuple[int, int]) -> None:
    backbone = build_backbone(ModelSection(name="resnet18"), 32, seed=0).eval()
    network = SegmentationNetwork(backbone, NORMALIZATION, CPU).eval()
    assert network(torch.rand(1, 3, *size)).shape == (1, 21, *size)


def data_of(image: VocImage) -> SegmentationData:
    train, test = SeededExamples([image], WholePicture()), SeededExamples([image], WholePicture())
    return SegmentationData(train, test, NORMALIZATION)


def test_one_picture_is_learnt_by_heart(image: VocImage) -> None:
    backbone = build_backbone(ModelSection(name="small_convnet"), 32, seed=0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    recipe = Recipe(80, 2, 0.1, 0.0, power=0.9)
    confusion = measure_segmentation(backbone, data_of(image), recipe, ALL, CPU, seed=0)
    ious = confusion.intersections_over_unions()
    assert confusion.counts.sum() == (WholePicture()(image, 0)[1] != IGNORED).sum()
    assert min(ious[0] or 0, ious[4] or 0) > 0.8
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_the_same_seed_gives_the_same_counts(image: VocImage) -> None:
    backbone = build_backbone(ModelSection(name="small_convnet"), 32, seed=0)
    counts = [
        measure_segmentation(backbone, data_of(image), Recipe(2, 2, 0.1, 0.0), FC68, CPU, seed).counts.tolist()
        for seed in (0, 0, 1)
    ]
    assert counts[0] == counts[1] != counts[2]
