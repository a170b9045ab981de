"""From a loaded batch to what a network sees: normalised, augmented by the batch's seed."""

from __future__ import annotations

import torch

from dcdist.data.augment import BatchAugmentation, Normalization, normalize, to_float
from dcdist.data.loader import Batch
from dcdist.data.preparation import prepare
from dcdist.data.tiles import Tiles
from dcdist.data.transforms import View
from dcdist.distributed.seeding import torch_generator

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)
NORMALIZATION = Normalization(MEAN, STD)
PLAIN = View(size=9, normalization=NORMALIZATION)
COLOURED = View(
    size=9, normalization=NORMALIZATION, augmentation=BatchAugmentation(brightness=0.5, rotation_degrees=20)
)


def batch(num_views: int, seed: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = tuple(torch.randint(0, 256, (4, 9, 9, 3), generator=generator).to(torch.uint8) for _ in range(num_views))
    ids = torch.arange(4)
    return Batch(pixels, ids + 7, ids % 2, ids != 2, seed, ((9, "truncated"),))


def test_pixels_become_normalised_floats_by_hand() -> None:
    loaded = batch(1)
    prepared = prepare(loaded, [PLAIN])
    (images,) = prepared.views
    assert images.shape == (4, 3, 9, 9)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        by_hand = (loaded.views[0][..., channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(images[:, channel].double(), by_hand, rtol=1e-5, atol=1e-6)


def test_everything_but_the_views_stays() -> None:
    loaded = batch(2)
    prepared = prepare(loaded, [PLAIN, COLOURED])
    assert prepared[1:] == loaded[1:]


def test_each_view_is_augmented_by_the_batchs_seed_and_its_number_before_it_is_normalised() -> None:
    loaded = batch(3)
    views = [COLOURED, PLAIN, COLOURED]
    prepared = prepare(loaded, views)
    for number, (pixels, view) in enumerate(zip(loaded.views, views, strict=True)):
        augmented = view.augmentation(to_float(pixels), torch_generator(3, "augment", number))
        torch.testing.assert_close(prepared.views[number], normalize(augmented, MEAN, STD))
    same = loaded._replace(views=(loaded.views[0],) * 2)
    first, second = prepare(same, [COLOURED] * 2).views
    assert not torch.equal(first, second), "two views of the same pixels differ"


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = prepare(batch(1), [COLOURED]).views[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(prepare(batch(1), [COLOURED]).views[0], first)
    assert not torch.equal(prepare(batch(1, seed=4), [COLOURED]).views[0], first)


def test_a_view_of_tiles_becomes_tiles_last() -> None:
    tiles = Tiles(size=3, normalize=False, yoked_jitter=False, random_aperture=0.0)
    loaded = batch(1)
    (found,) = prepare(loaded, [View(size=9, normalization=NORMALIZATION, tiles=tiles)]).views
    assert found.shape == (4, 9, 3, 3, 3)
    # 3 x 3 cells of 3 pixels leave no room to jitter: tiles are the cells, row by row.
    whole = normalize(to_float(loaded.views[0]), MEAN, STD)
    for number in range(9):
        top, left = 3 * (number // 3), 3 * (number % 3)
        torch.testing.assert_close(found[:, number], whole[..., top : top + 3, left : left + 3])


def test_tiles_that_are_normalised_themselves_come_from_pixels_as_they_are() -> None:
    loaded, tiles = batch(1), Tiles(size=3)
    (found,) = prepare(loaded, [View(size=9, normalization=NORMALIZATION, tiles=tiles)]).views
    expected = tiles(to_float(loaded.views[0]), torch_generator(3, "augment", 0))
    torch.testing.assert_close(found, expected)


def test_each_view_is_normalised_in_its_own_way() -> None:
    loaded = batch(2)
    other = View(size=9, normalization=Normalization(standardize=True))
    first, second = prepare(loaded, [PLAIN, other]).views
    assert torch.equal(first, prepare(batch(1), [PLAIN]).views[0])
    torch.testing.assert_close(second.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
