"""Strong augmentation: decided by its seed alone; the grey square of cutout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dcdist.data.strong import StrongAugmentation, operations
from dcdist.data.transforms import View

GREY = 128


@pytest.fixture
def pixels(make_pixels) -> torch.Tensor:
    """uint8 [24, 24, 3], nowhere grey."""
    picture = torch.from_numpy(make_pixels(24, 24).copy())
    return torch.where(picture == GREY, GREY + 1, picture).to(torch.uint8)


def test_the_seed_decides(pixels):
    strong = StrongAugmentation(4, 8)
    torch.manual_seed(1)
    first = [strong(pixels, seed) for seed in range(20)]
    torch.manual_seed(2)
    again = [strong(pixels, seed) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.numpy().tobytes() for image in first}) == 20
    for image in first:
        assert (image.shape, image.dtype, image.is_contiguous()) == (pixels.shape, torch.uint8, True)


def test_the_global_generator_stays_as_it_is(pixels):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    StrongAugmentation(4, 8)(pixels, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_input_stays_as_it_is(pixels):
    before = pixels.clone()
    for seed in range(30):
        StrongAugmentation(2, 8)(pixels, seed)
        StrongAugmentation(0, 8)(pixels, seed)
    assert torch.equal(pixels, before)


def test_no_operations_and_no_cutout_are_the_identity(pixels):
    found = StrongAugmentation(0, 0)(pixels, 7)
    assert torch.equal(found, pixels)
    assert found.data_ptr() != pixels.data_ptr()


def square(image: torch.Tensor, original: torch.Tensor) -> tuple[int, int, int, int]:
    """First and last row and column of the part that is grey, which is a whole rectangle and all that has changed."""
    changed = (image != original).any(2)
    rows, columns = (torch.nonzero(changed.any(axis)).flatten().tolist() for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    assert bool((image[top : bottom + 1, left : right + 1] == GREY).all())
    assert int(changed.sum()) == (bottom - top + 1) * (right - left + 1)
    return top, bottom, left, right


def test_cutout_is_a_grey_square_of_at_most_its_size_cut_off_at_every_border_alike(pixels):
    squares = [square(StrongAugmentation(0, 6)(pixels, seed), pixels) for seed in range(600)]
    sides = [(bottom - top + 1, right - left + 1) for top, bottom, left, right in squares]
    assert max(max(side) for side in sides) == 6
    inside = [side for side, found in zip(sides, squares, strict=True) if min(found) > 0 and max(found) < 23]
    assert all(height == width for height, width in inside)
    counts = np.bincount([height for height, _ in inside], minlength=7)[1:]
    assert (counts > 0.5 * counts.mean()).all(), "every side from 1 to 6"
    for border in range(4):  # top, bottom, left and right
        touching = [found[border] == (23 if border % 2 else 0) for found in squares]
        cut_off = [
            touches and (height < width if border < 2 else width < height)
            for touches, (height, width) in zip(touching, sides, strict=True)
        ]
        assert 10 < sum(cut_off) < 120


def test_the_middle_of_cutout_is_uniform(pixels):
    covered = sum((StrongAugmentation(0, 5)(pixels, seed) != pixels).any(2).int() for seed in range(2000))
    quarters = [
        int(covered[rows, columns].sum())
        for rows in (slice(12), slice(12, None))
        for columns in (slice(12), slice(12, None))
    ]
    assert min(quarters) > 0.8 * max(quarters)


def test_operations_of_both_kinds_are_drawn_at_all_strengths(pixels):
    distances = [
        float((StrongAugmentation(1, 0)(pixels, seed).float() - pixels.float()).abs().mean()) for seed in range(150)
    ]
    unchanged = sum(distance == 0 for distance in distances) / len(distances)
    assert 0.05 < unchanged < 0.5  # the identity is one of 14, and some others change nothing when they are weak
    assert max(distances) > 40
    assert len({round(distance, 3) for distance in distances}) > 60


def test_the_fourteen_operations_by_hand():
    table = operations()
    ranges = {
        (0.0, 0.0): ["identity", "autocontrast", "equalize"],
        (0.05, 0.95): ["brightness", "color", "contrast", "sharpness"],
        (-0.1, 0.1): ["shear across", "shear down", "move across", "move down"],
        (4.0, 8.0): ["posterize"],
        (0.0, 255.0): ["solarize"],
        (-30.0, 30.0): ["rotate"],
    }
    assert {name: limits for name, (_, *limits) in table.items()} == {
        name: list(limits) for limits, names in ranges.items() for name in names
    }
    image = torch.arange(3 * 20 * 20).reshape(3, 20, 20).remainder(251).to(torch.uint8)

    def at(name: str, strength: float) -> torch.Tensor:
        apply, least, most = table[name]
        assert least <= strength <= most, name
        return apply(image, strength)

    assert torch.equal(at("identity", 0.0), image)
    right = at("move across", 0.1)  # two of twenty pixels
    assert torch.equal(right[:, :, 2:], image[:, :, :-2])
    assert bool((right[:, :, :2] == 0).all())
    assert torch.equal(at("move down", -0.1)[:, :-2], image[:, 2:])
    for name in ("rotate", "shear across", "shear down"):
        assert torch.equal(at(name, 0.0), image)
    assert torch.equal(at("brightness", 0.5), (image / 2).to(torch.uint8))
    assert torch.equal(at("posterize", 4.5), image & 0b11110000)
    assert torch.equal(at("solarize", 128.0), torch.where(image >= 128, 255 - image, image))
    for name, quantity in (("contrast", image.float().std()), ("color", image.float().std(0).mean())):
        less = at(name, 0.05).float()
        assert float(less.std() if name == "contrast" else less.std(0).mean()) < 0.2 * float(quantity)
    stretched = at("autocontrast", 0.0).float()
    for channel, before in zip(stretched, image.float(), strict=True):
        expected = (before - before.min()) * 255 / (before.max() - before.min())
        assert (channel - expected).abs().max() <= 1
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    equalized = torch.from_numpy(np.array(ImageOps.equalize(picture))).permute(2, 0, 1)
    assert torch.equal(at("equalize", 0.0), equalized)
    blurred = at("sharpness", 0.05)[0, 1:-1, 1:-1].float()
    assert float(blurred.diff().abs().sum()) < float(image[0, 1:-1, 1:-1].float().diff().abs().sum())


def test_a_view_applies_it_after_the_crop_and_the_flip_to_each_image_by_its_own_seed(make_pixels):
    plain = View(size=16, crop="random_resized", horizontal_flip=True)
    strong = View(size=16, crop="random_resized", horizontal_flip=True, strong=StrongAugmentation(2, 6))
    image = make_pixels(30, 40)
    draws, plain_draws = strong.draw(np.random.default_rng(3), 4), plain.draw(np.random.default_rng(3), 4)
    assert draws.strong.dtype == np.int64
    assert len(set(draws.strong.tolist())) == 4
    assert plain_draws.strong.tolist() == []
    for index in range(4):
        cropped = plain.apply(image, plain_draws, index)
        expected = StrongAugmentation(2, 6)(cropped, int(draws.strong[index]))
        assert torch.equal(strong.apply(image, draws, index), expected)
