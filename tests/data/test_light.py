"""What takes the meaning out of brightness: each image by its own mean and deviation, light that differs by place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dcdist.data.augment import BatchAugmentation, Normalization, standardize
from dcdist.data.loader import Batch
from dcdist.data.preparation import prepare
from dcdist.data.transforms import View


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_standardized_images_have_mean_0_over_pixels_and_colours_together() -> None:
    images = torch.rand(4, 3, 8, 8, generator=generator()) * 0.5 + 0.2
    flat = images.flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, correction=0, keepdim=True) + 0.05)
    torch.testing.assert_close(standardize(images).flatten(1), expected)


def test_standardized_images_do_not_know_how_bright_they_were() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator()) * 0.5
    torch.testing.assert_close(standardize(images + 0.3), standardize(images))
    assert not standardize(torch.full((1, 3, 4, 4), 0.7)).abs().max() > 1e-5, "flat stays flat"


def test_shading_is_one_smooth_field_for_all_colours() -> None:
    images = torch.full((50, 3, 9, 9), 0.5)
    field = BatchAugmentation(shading=0.4)(images, generator()) - images
    assert torch.equal(field[:, 0], field[:, 1])
    assert torch.equal(field[:, 0], field[:, 2])
    rows = field[:, 0]
    # A grid of 3 x 3 points lies on the pixels 0, 4 and 8; between them the field is linear.
    for low, high in ((0, 4), (4, 8)):
        torch.testing.assert_close(rows[:, low + 1], 0.75 * rows[:, low] + 0.25 * rows[:, high])
        torch.testing.assert_close(rows[:, :, low + 2], 0.5 * rows[:, :, low] + 0.5 * rows[:, :, high])
    # The points are 0.4 u z, u uniform and z normal: a variance of 0.16 / 3.
    points = rows[:, ::4, ::4]
    assert float(points.square().mean().sqrt()) == pytest.approx(0.4 / 3**0.5, rel=0.15)
    assert float(rows.flatten(1).std(1).max() / rows.flatten(1).std(1).min()) > 5, "some images hardly, some much"


def test_preparation_standardizes_in_place_of_mean_and_deviation() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=generator())
    ids = torch.arange(2)
    batch = Batch((pixels,), ids, None, torch.ones(2, dtype=torch.bool), 0, ())
    normalization = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), standardize=True)
    (prepared,) = prepare(batch, (View(size=8, normalization=normalization),)).views
    expected = standardize(pixels.permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(prepared.numpy(), expected.numpy(), rtol=1e-6)
