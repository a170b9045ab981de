"""Views: geometry against hand-computed boxes and torchvision's, pixels against Pillow's resize."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dcdist.data.transforms import View, center_box
from dcdist.distributed.seeding import numpy_generator


def boxes(view: View, height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    draws = view.draw(numpy_generator(seed), count)
    return np.array([view._box(height, width, draws, index) for index in range(count)])


def apply(view: View, image: np.ndarray, seed: int = 0) -> np.ndarray:
    return view.apply(image, view.draw(numpy_generator(seed), 1), 0).numpy()


@pytest.mark.parametrize(
    ("height", "width", "resize", "size", "expected"),
    [
        (256, 256, 256, 224, (16, 16, 224, 224)),
        (256, 512, 256, 224, (16, 144, 224, 224)),
        (375, 500, 256, 224, (23, 85, 329, 328)),  # resized to 256 x 341: rows 16..240, columns 58..282
        (500, 375, 256, 224, (85, 23, 328, 329)),
        (32, 32, 64, 64, (0, 0, 32, 32)),
        (1, 1, 8, 8, (0, 0, 1, 1)),
        (1, 1000, 256, 224, (0, 500, 1, 1)),
    ],
)
def test_center_box(height, width, resize, size, expected):
    assert center_box(height, width, resize, size) == expected


def test_center_crop_without_resize_equals_torchvision(make_pixels):
    image = make_pixels(40, 61)
    reference = v2.CenterCrop(32)(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0)
    assert np.array_equal(apply(View(32, resize=40), image), reference)


def test_center_crop_with_resize_is_close_to_torchvision(make_pixels):
    image = make_pixels(375, 500)
    reference = v2.CenterCrop(112)(v2.Resize(128, antialias=True)(torch.from_numpy(image).permute(2, 0, 1)))
    ours = torch.from_numpy(apply(View(112, resize=128), image)).permute(2, 0, 1)
    assert (ours.int() - reference.int()).abs().float().mean() < 2  # the edges are rounded to whole pixels


@pytest.mark.parametrize(
    ("height", "width", "size"), [(100, 80, 32), (20, 31, 64), (224, 224, 224), (64, 64, 63), (1, 1, 4)]
)
def test_resize_agrees_with_pillow(make_pixels, height, width, size):
    image = make_pixels(height, width)
    reference = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(apply(View(size, "full"), image).astype(int) - reference).max() <= 2


def test_crop_is_cut_before_it_is_resized(make_pixels):
    image = make_pixels(90, 120)
    view = View(48, "random_resized")
    top, left, height, width = boxes(view, 90, 120, 1)[0]
    crop = Image.fromarray(image[top : top + height, left : left + width])
    reference = np.asarray(crop.resize((48, 48), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(apply(view, image).astype(int) - reference).max() <= 2


def test_random_boxes_are_distributed_as_torchvisions():
    view = View(32, "random_resized", scale=(0.2, 1.0))
    ours = boxes(view, 120, 160, 3000)
    torch.manual_seed(0)
    image = torch.empty(3, 120, 160)
    theirs = np.array(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True).make_params([image])[k]
            for _ in range(3000)
            for k in KEYS
        ]
    ).reshape(3000, 4)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 120).all()
    assert (ours[:, 1] + ours[:, 3] <= 160).all()
    for column in range(4):
        quantiles = [np.quantile(boxes_[:, column], [0.1, 0.3, 0.5, 0.7, 0.9]) for boxes_ in (ours, theirs)]
        assert np.abs(quantiles[0] - quantiles[1]).max() < 5  # pixels; the quantiles of 3,000 draws waver by about 2


KEYS = ("top", "left", "height", "width")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 100, (0, 43, 10, 13)),  # too wide: 10 * 4/3 columns in the middle
        (100, 9, (44, 0, 12, 9)),  # too narrow: 9 / (3/4) rows
        (1, 100, (0, 49, 1, 1)),
    ],
)
def test_where_no_random_box_fits_the_middle_is_taken(height, width, expected):
    view = View(8, "random_resized", scale=(1.0, 1.0))
    assert tuple(boxes(view, height, width, 1)[0]) == expected


def test_half_of_the_images_are_flipped(make_pixels):
    image = make_pixels(16, 16)
    view = View(16, "full", horizontal_flip=True)
    draws = view.draw(numpy_generator(3), 400)
    flipped = 0
    for index in range(400):
        pixels = view.apply(image, draws, index).numpy()
        is_flipped = np.array_equal(pixels, image[:, ::-1])
        assert is_flipped != np.array_equal(pixels, image)
        flipped += is_flipped
    assert 160 < flipped < 240


def test_what_an_image_gets_does_not_depend_on_the_others(make_pixels):
    view = View(16, "random_resized", horizontal_flip=True)
    draws = view.draw(numpy_generator(7), 3)
    image = make_pixels(40, 50)
    expected = view.apply(image, draws, 2)
    view.apply(make_pixels(300, 9), draws, 0)
    view.apply(make_pixels(9, 300), draws, 1)
    assert torch.equal(view.apply(image, draws, 2), expected)
    assert not torch.equal(view.apply(image, draws, 1), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "at least 1 pixel"),
        ({"size": 8, "crop": "middle"}, "center, random, random_resized and full"),
        ({"size": 224, "resize": 200}, "becomes 200: too small to cut 224"),
        ({"size": 8, "scale": (0.0, 1.0)}, "scale is"),
        ({"size": 8, "scale": (0.5, 1.5)}, "scale is"),
        ({"size": 8, "ratio": (2.0, 1.0)}, "ratio is"),
    ],
)
def test_impossible_views_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        View(**arguments)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ((0.0, 0.0), (0, 0)),
        ((0.0, 1.0), (0, 32)),
        ((1.0, 0.0), (32, 0)),
        ((1.0, 1.0), (32, 32)),
        ((0.5, 0.5), (16, 16)),
    ],
)
def test_corners_are_torchvisions_five_crops(make_pixels, position, expected):
    image = make_pixels(256, 256)
    assert tuple(boxes(View(224, resize=256, position=position), 256, 256, 1)[0]) == (*expected, 224, 224)
    crops = v2.FiveCrop(224)(torch.from_numpy(image).permute(2, 0, 1))
    ours = torch.from_numpy(apply(View(224, resize=256, position=position), image)).permute(2, 0, 1)
    assert sum(torch.equal(ours, crop) for crop in crops) == 1


def test_random_crops_lie_anywhere_in_the_central_square():
    """Of 375 x 500 the central square of 256 resized pixels is all of the height and columns 62 to 437."""
    found = boxes(View(224, "random", resize=256), 375, 500, 20_000)
    assert set(found[:, 2]) == {328}
    assert set(found[:, 3]) == {328}
    assert (found[:, 0].min(), found[:, 0].max()) == (0, 47)
    assert (found[:, 1].min(), found[:, 1].max()) == (62, 62 + 47)
    counts = np.bincount(found[:, 0])
    assert counts.min() > 300  # 417 expected, uniform over 48 places
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.03
