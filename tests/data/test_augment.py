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
    gaussian_blur,
    grey,
    inverse_affine,
    invert,
    normalize,
    project_colors,
    solarize,
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


def test_floats_are_normalised_in_channels_last():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 4, 4, 3)
    images = normalize(to_float(pixels.contiguous()), (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    assert images.shape == (2, 3, 4, 4)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(images[1, :, 2, 3], torch.tensor([-1.0, 0.0, 0.5]), atol=1e-6)


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
        color_projection_probability=0.3, chroma_blur_probability=0.3, solarize_probability=0.3,
        invert_probability=0.3, blur_probability=0.5,
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


def test_blur_equals_torchvision_image_by_image(images):
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.3, 1.7, 2.0])
    # Kernels of one size for all images: twice the largest deviation to either side.
    expected = [reference.gaussian_blur(image, [9, 9], [s, s]) for image, s in zip(images, sigma.tolist(), strict=True)]
    assert torch.allclose(gaussian_blur(images, sigma, 2.0), torch.stack(expected), atol=1e-5)


def test_blur_of_a_point_by_hand():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1.0
    weights = torch.tensor([math.exp(-offset * offset / 2) for offset in (-2, -1, 0, 1, 2)])
    weights /= weights.sum()
    found = gaussian_blur(image, torch.tensor([1.0]), 1.0)[0, 0]
    assert torch.allclose(found[2:7, 2:7], torch.outer(weights, weights), atol=1e-6)
    assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_blur_of_pictures_smaller_than_its_kernel_keeps_what_is_constant(side):
    constant = torch.full((2, 3, side, side), 0.3)
    assert torch.allclose(gaussian_blur(constant, torch.tensor([0.5, 2.0]), 2.0), constant)


def test_colour_projection_removes_green_against_magenta_and_nothing_else():
    axis = torch.tensor([-1.0, 2.0, -1.0])
    # I - a a^T / (a^T a) of (0.5, 0.7, 0.3): a^T x = 0.6, less 0.6 / 6 (-1, 2, -1).
    image = torch.tensor([0.5, 0.7, 0.3]).view(1, 3, 1, 1)
    projected = project_colors(image)
    assert projected.flatten().tolist() == pytest.approx([0.6, 0.5, 0.4])
    assert float(projected.flatten() @ axis) == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(project_colors(projected), projected)
    grey_image = torch.full((1, 3, 2, 2), 0.4)
    assert torch.allclose(project_colors(grey_image), grey_image)
    green = project_colors(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
    assert green.flatten().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    magenta = project_colors(torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1))
    assert magenta.flatten().tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    orange = project_colors(torch.tensor([1.0, 0.1, 0.0]).view(1, 3, 1, 1))  # a^T x = -0.8
    assert orange.flatten().tolist() == pytest.approx([1 - 0.8 / 6, 0.1 + 1.6 / 6, 0.0]), "stays within 0..1"


def test_solarize_and_invert_equal_torchvision(images):
    assert torch.allclose(solarize(images), reference.solarize(images, 0.5))
    assert torch.allclose(invert(images), reference.invert(images))
    assert solarize(torch.tensor([0.2, 0.5, 0.7])).tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_chroma_blur_keeps_the_luma_and_blurs_the_colours(images):
    pale = 0.3 + 0.4 * images  # far from 0 and 1, where clamping would change the luma
    blurred = BatchAugmentation(chroma_blur_probability=1.0, blur_sigma=(1.5, 1.5))(pale, generator())
    assert torch.allclose(grey(blurred), grey(pale), atol=2e-4)  # the published weights sum to 0.9999
    chroma = gaussian_blur(pale - grey(pale), torch.full((6,), 1.5), 1.5)
    assert torch.allclose(blurred - grey(blurred), chroma - grey(chroma), atol=2e-4)
    assert float((blurred - pale)[:5].abs().amax((1, 2, 3)).min()) > 0.01
    assert torch.allclose(blurred[5], pale[5], atol=2e-4), "a grey picture has no colours to blur"


@pytest.mark.parametrize(
    "name",
    [
        "blur_probability",
        "chroma_blur_probability",
        "color_projection_probability",
        "solarize_probability",
        "invert_probability",
    ],
)
def test_each_change_has_its_probability(images, name):
    many = images[:1].repeat(500, 1, 1, 1)
    changed = BatchAugmentation(**{name: 0.3}, blur_sigma=(1.0, 2.0))(many, generator())
    share = (changed != many).flatten(1).any(1).float().mean()
    assert 0.23 < share < 0.37  # 3.3 standard deviations
    assert torch.equal(BatchAugmentation(**{name: 0.0})(many, generator()), many)
    certain = BatchAugmentation(**{name: 1.0}, blur_sigma=(1.0, 2.0))(many, generator())
    assert bool((certain != many).flatten(1).any(1).all())


def test_deviations_of_the_blur_are_uniform_in_their_range():
    # The central weight of a kernel tells its deviation: pictures of one bright pixel.
    points = torch.zeros(400, 3, 17, 17)
    points[:, :, 8, 8] = 1.0
    blurred = BatchAugmentation(blur_probability=1.0, blur_sigma=(0.5, 2.0))(points, generator())
    ratio = blurred[:, 0, 8, 9] / blurred[:, 0, 8, 8]  # exp(-1 / (2 sigma^2))
    sigma = (-0.5 / ratio.log()).sqrt()
    assert 0.5 <= sigma.min() + 1e-3 < 0.52
    assert 1.98 < sigma.max() <= 2.001
    assert 1.19 < sigma.mean() < 1.31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, "brightness is -0.1"),
        ({"hue": 0.6}, "hue is 0.6"),
        ({"grayscale_probability": 1.1}, "grayscale_probability is 1.1"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"blur_probability": 1.5}, "blur_probability is 1.5"),
        ({"invert_probability": -1.0}, "invert_probability is -1.0"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma is"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(**arguments)
