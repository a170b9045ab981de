"""Augmentation of batches against torchvision's functions for single images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dcdist.data.augment import (
    BatchAugmentation,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grey,
    inverse_affine,
    normalize,
    to_float,
)


@pytest.fixture
def images(make_pixels) -> torch.Tensor:
    """[6, 3, 32, 32] in 0..1, the last one grey, the first with black, white and pure colours."""
    pixels = np.stack([make_pixels(32, 32, seed) for seed in range(6)])
    pixels[5] = pixels[5][..., :1]
    pixels[0, 0, :5] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    return to_float(torch.from_numpy(pixels))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_to_float_normalizes_in_channels_last():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 4, 4, 3)
    images = to_float(pixels.contiguous(), mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 2.0))
    assert images.shape == (2, 3, 4, 4)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(images[1, :, 2, 3], torch.tensor([-1.0, 0.0, 0.5]), atol=1e-6)
    twice = normalize(to_float(pixels.contiguous()), (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    assert torch.equal(images, twice)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, reference.adjust_brightness, [0.0, 0.4, 1.0, 1.3, 2.0, 0.9]),
        (adjust_contrast, reference.adjust_contrast, [0.0, 0.4, 1.0, 1.3, 2.0, 0.9]),
        (adjust_saturation, reference.adjust_saturation, [0.0, 0.4, 1.0, 1.3, 2.0, 0.9]),
        (adjust_hue, reference.adjust_hue, [-0.5, -0.2, 0.0, 0.1, 0.33, 0.5]),
    ],
)
def test_colour_equals_torchvision_image_by_image(images, ours, theirs, factors):
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors, strict=True)])
    assert torch.allclose(ours(images, column(factors)), expected, atol=1e-5)


def test_grey_equals_torchvision(images):
    expected = reference.rgb_to_grayscale(images)
    assert torch.allclose(grey(images), expected, atol=1e-6)
    everything_grey = BatchAugmentation(grayscale_probability=1.0)(images, generator())
    assert torch.allclose(everything_grey, expected.expand(-1, 3, -1, -1), atol=1e-6)
    some = BatchAugmentation(grayscale_probability=0.3)(images.repeat(100, 1, 1, 1), generator())
    share = (some[:, 0] == some[:, 1]).flatten(1).all(1).view(100, 6)[:, :5].float().mean()
    assert 0.2 < share < 0.4


def warp(images: torch.Tensor, **parameters: float) -> torch.Tensor:
    names = ("angle", "shear", "shift_x", "shift_y", "zoom")
    values = [torch.full((len(images),), parameters.get(name, float(name == "zoom"))) for name in names]
    grid = torch.nn.functional.affine_grid(inverse_affine(*values), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("degrees", [-90.0, -17.0, 10.0, 180.0])
def test_rotation_equals_torchvision(images, degrees):
    expected = reference.rotate(images, degrees, interpolation=reference.InterpolationMode.BILINEAR)
    inside = (slice(None), slice(None), slice(10, 22), slice(10, 22))  # elsewhere the two fill differently
    assert torch.allclose(warp(images, angle=math.radians(degrees))[inside], expected[inside], atol=1e-4)


def test_shift_zoom_and_shear_by_hand(images):
    assert torch.allclose(warp(images, shift_x=0.25)[..., 4:], images[..., :-4], atol=1e-5)  # an eighth of 32 pixels
    assert torch.allclose(warp(images, shift_y=-0.25)[..., :-4, :], images[..., 4:, :], atol=1e-5)
    assert torch.allclose(warp(images, shift_x=0.25)[..., 0], images[..., 0], atol=1e-5)  # filled by the border
    zoomed = warp(images, zoom=2.0)  # output pixel 16 + k is input 16 + k/2 - 1/4
    assert torch.allclose(
        zoomed[..., 16, 16],
        (
            0.75**2 * images[..., 16, 16]
            + 0.75 * 0.25 * (images[..., 15, 16] + images[..., 16, 15])
            + 0.25**2 * images[..., 15, 15]
        ),
        atol=1e-5,
    )
    # A row y pixels below the middle moves shear * y to the right; rows lie at half pixels.
    sheared = warp(images, shear=2.0)
    assert torch.allclose(sheared[..., 18, 10:20], images[..., 18, 5:15], atol=1e-5)  # y = 2.5


def test_shear_is_the_inner_and_rotation_the_outer_map(images):
    both = warp(images, angle=math.pi / 2, shear=2.0)
    assert torch.allclose(both, reference.rotate(warp(images, shear=2.0), 90.0), atol=1e-4)


def test_defaults_return_the_input_itself(images):
    assert BatchAugmentation()(images, generator()) is images
    assert BatchAugmentation(brightness=0.4, jitter_probability=0.0)(images, generator()) is images


def everything() -> BatchAugmentation:
    return BatchAugmentation(
        rotation_degrees=15, shear=0.15, translate=0.12, scale=(0.8, 1.2), elastic_sigma=0.05,
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_probability=0.8, grayscale_probability=0.2,
    )  # fmt: skip


def test_depends_on_the_generator_alone(images):
    torch.manual_seed(1)
    first = everything()(images, generator(3))
    torch.manual_seed(2)
    assert torch.equal(everything()(images, generator(3)), first)
    assert not torch.equal(everything()(images, generator(4)), first)
    assert first.shape == images.shape
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert first.min() >= 0
    assert first.max() <= 1


def test_leaves_the_global_generator_alone(images):
    before = torch.get_rng_state()
    everything()(images, generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_jitter_probability(images):
    many = images[:1].repeat(600, 1, 1, 1)
    jittered = BatchAugmentation(brightness=0.5, hue=0.2, jitter_probability=0.8)(many, generator())
    changed = (jittered != many).flatten(1).any(1).float().mean()
    assert 0.74 < changed < 0.86


def test_ranges_of_the_draws():
    ramp = torch.full((2000, 3, 1, 1), 0.25)
    factors = BatchAugmentation(brightness=0.4)(ramp, generator())[:, 0, 0, 0] / 0.25
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4
    # On a picture whose value is the horizontal position, a shift shows in its middle.
    positions = torch.linspace(0.5 / 64, 1 - 0.5 / 64, 64).expand(500, 3, 64, 64)
    shifts = 0.5 - BatchAugmentation(translate=0.1)(positions, generator())[:, 0, 31:33, 31:33].mean((1, 2))
    assert -0.1001 <= shifts.min() < -0.095
    assert 0.095 < shifts.max() <= 0.1001


def test_elastic_displacement_has_the_given_size():
    positions = torch.linspace(0.5 / 64, 1 - 0.5 / 64, 64).expand(800, 3, 64, 64)
    warped = BatchAugmentation(elastic_sigma=0.05, elastic_grid=4)(positions, generator())
    # The side is 2 long for sigma and 1 for the values; the third of four grid points lies at 2/3 of the pixels.
    displacement = (warped - positions)[:, 0, 42, 42] * 2
    assert 0.04 < displacement.std() < 0.055
    assert abs(displacement.mean()) < 0.006


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, "brightness is -0.1"),
        ({"hue": 0.6}, "hue is 0.6"),
        ({"grayscale_probability": 1.1}, "grayscale_probability is 1.1"),
        ({"scale": (0.0, 1.0)}, "scale is"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(**arguments)
