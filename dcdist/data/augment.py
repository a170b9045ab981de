"""Arithmetic on pixels, a batch at a time, on whatever device the batch is: conversion, geometry, colour.

Every random number is drawn on the CPU from the generator that is passed, so a batch is augmented alike on all devices.
Shapes: B images of S x S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

FLAT = 0.05  # added to the standard deviation of an image that is standardised
_SHADING_GRID = 3  # points a side, between which the light changes linearly
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as Pillow and torchvision round it


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in 0..1, as BatchAugmentation wants them, in channels_last memory."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(image - mean) / std by channel, of float [B, 3, S, S]."""
    offset, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (images - offset) / scale


def standardize(images: torch.Tensor) -> torch.Tensor:
    """Each of float [B, 3, S, S] to mean 0 and standard deviation 1, over pixels and colours together.

    What is nearly flat stays small: 0.05 is added to the standard deviation (of values in 0..1).
    """
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / (deviation + FLAT)


@dataclass(frozen=True)
class Normalization:
    """The last arithmetic on pixels; with the defaults nothing."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    standardize: bool = False  # each image by its own mean and standard deviation, in place of these

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Float [B, 3, S, S] in 0..1 -> the same, as a network sees it."""
        return standardize(images) if self.standardize else normalize(images, self.mean, self.std)


@dataclass(frozen=True)
class BatchAugmentation:
    """Random geometry, then random colour, of images in 0..1; with the defaults nothing.

    Geometry is one resampling: bilinear, positions outside of the image take the nearest pixel of its border. Colour
    follows torchvision's definitions of ColorJitter, in the fixed order brightness, contrast, saturation, hue.
    """

    rotation_degrees: float = 0.0  # angle uniform in +-, counter-clockwise
    shear: float = 0.0  # x moves by shear * y, uniform in +-
    translate: float = 0.0  # share of the side, uniform in +-, each axis its own
    scale: tuple[float, float] = (1.0, 1.0)  # magnification, uniform
    elastic_sigma: float = 0.0  # standard deviation of the displacement, where the side is 2 long
    elastic_grid: int = 4  # displacements are drawn on a grid of so many points a side, bicubic between them
    brightness: float = 0.0  # factor uniform in max(0, 1 - b)..1 + b
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift uniform in +-, 1 is the whole colour circle
    jitter_probability: float = 1.0  # of an image to get the four above
    grayscale_probability: float = 0.0
    color_projection_probability: float = 0.0  # of losing the green-magenta axis (Doersch et al., 2015)
    chroma_blur_probability: float = 0.0  # of a blur of the colours, not of the luma (Mundhenk et al., 2018)
    shading: float = 0.0  # standard deviation of a smooth field of light, itself scaled by a uniform factor
    solarize_probability: float = 0.0  # of inverting what is brighter than a half
    invert_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation in pixels, uniform; of both blurs

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                if not 0 < value[0] <= value[1]:
                    raise ValueError(f"{field.name} is {value}: two numbers, 0 < smallest <= largest")
            elif value < 0:
                raise ValueError(f"{field.name} is {value}, it must not be negative")
            largest = 0.5 if field.name == "hue" else 1.0 if field.name.endswith("_probability") else math.inf
            if not isinstance(value, tuple) and value > largest:
                raise ValueError(f"{field.name} is {value}, it must not exceed {largest}")

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Float [B, 3, S, S] in 0..1 -> the same, in channels_last memory; `generator` is a CPU generator."""
        if self._changes_geometry():
            images = self._warp(images, generator)
        if self._changes_colour():
            images = self._jitter(images, generator)
        if self.grayscale_probability > 0:
            chosen = torch.rand(len(images), generator=generator) < self.grayscale_probability
            images = torch.where(_per_image(chosen, images), grey(images).expand_as(images), images)
        if self.shading > 0:
            images = self._shade(images, generator)
        for probability, change in (
            (self.color_projection_probability, project_colors),
            (self.chroma_blur_probability, self._blur_chroma),
            (self.solarize_probability, solarize),
            (self.invert_probability, invert),
            (self.blur_probability, self._blur),
        ):
            if probability > 0:
                chosen = torch.rand(len(images), generator=generator) < probability
                images = torch.where(_per_image(chosen, images), change(images, generator), images)
        return images.contiguous(memory_format=torch.channels_last)

    def _changes_geometry(self) -> bool:
        return any((self.rotation_degrees, self.shear, self.translate, self.elastic_sigma)) or self.scale != (1, 1)

    def _changes_colour(self) -> bool:
        return self.jitter_probability > 0 and any((self.brightness, self.contrast, self.saturation, self.hue))

    def _warp(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count, _, height, width = images.shape
        angle = _uniform(count, -1, 1, generator) * math.radians(self.rotation_degrees)
        shear = _uniform(count, -1, 1, generator) * self.shear
        shift_x, shift_y = (_uniform(count, -2, 2, generator) * self.translate for _ in range(2))
        zoom = _uniform(count, *self.scale, generator)
        theta = inverse_affine(angle, shear, shift_x, shift_y, zoom)
        grid = F.affine_grid(theta.to(images), [count, 1, height, width], align_corners=False)
        if self.elastic_sigma > 0:
            coarse = torch.randn(count, 2, self.elastic_grid, self.elastic_grid, generator=generator)
            displacement = F.interpolate(
                coarse.to(images) * self.elastic_sigma, (height, width), mode="bicubic", align_corners=True
            )
            grid = grid + displacement.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _shade(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Adds light that differs from place to place: what is bright says nothing about what is shown."""
        count, _, height, width = images.shape
        strength = self.shading * torch.rand(count, 1, 1, 1, generator=generator)
        coarse = strength * torch.randn(count, 1, _SHADING_GRID, _SHADING_GRID, generator=generator)
        field = F.interpolate(coarse.to(images), (height, width), mode="bilinear", align_corners=True)
        return images + field  # beyond 0..1, too: what follows has no need of the limits

    def _blur(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return gaussian_blur(images, _uniform(len(images), *self.blur_sigma, generator), self.blur_sigma[1])

    def _blur_chroma(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        luma = grey(images)
        chroma = self._blur(images - luma, generator)
        return (luma + chroma - grey(chroma)).clamp(0, 1)

    def _jitter(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count = len(images)
        brightness, contrast, saturation = (
            _per_image(_uniform(count, max(0.0, 1 - strength), 1 + strength, generator), images)
            for strength in (self.brightness, self.contrast, self.saturation)
        )
        hue = _per_image(_uniform(count, -self.hue, self.hue, generator), images)
        chosen = _per_image(torch.rand(count, generator=generator) < self.jitter_probability, images)
        jittered = images
        if self.brightness > 0:
            jittered = adjust_brightness(jittered, brightness)
        if self.contrast > 0:
            jittered = adjust_contrast(jittered, contrast)
        if self.saturation > 0:
            jittered = adjust_saturation(jittered, saturation)
        if self.hue > 0:
            jittered = adjust_hue(jittered, hue)
        return torch.where(chosen, jittered, images)


def inverse_affine(
    angle: torch.Tensor, shear: torch.Tensor, shift_x: torch.Tensor, shift_y: torch.Tensor, zoom: torch.Tensor
) -> torch.Tensor:
    """Maps output to input positions on [-1, 1]^2, as affine_grid wants it, of: shear, zoom, rotate, then shift.

    Args:
        angle: [B] radians, counter-clockwise as one sees the picture (whose y axis points down).
        shear: [B] x moves by shear * y.
        shift_x: [B] to the right, where the side is 2 long.
        shift_y: [B] downwards.
        zoom: [B] magnification.

    Returns:
        [B, 2, 3].
    """
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # The inverse of (rotation @ shear) * zoom is inverse shear @ transposed rotation / zoom.
    rows = torch.stack([cos + shear * -sin, -sin - shear * cos, sin, cos], dim=1).view(-1, 2, 2)
    offset = -(rows @ torch.stack([shift_x, shift_y], dim=1).unsqueeze(2))
    return torch.cat([rows, offset], dim=2)


def grey(images: torch.Tensor) -> torch.Tensor:
    """[B, 3, S, S] -> [B, 1, S, S], the luma."""
    return (images * images.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)


def project_colors(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:  # noqa: ARG001
    """Colours without their part along (-1, 2, -1), green against magenta, which chromatic aberration shifts."""
    axis = images.new_tensor((-1.0, 2.0, -1.0)) / 6**0.5
    along = (images * axis.view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (images - along * axis.view(1, 3, 1, 1)).clamp(0, 1)


def solarize(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:  # noqa: ARG001
    """Values above a half are inverted."""
    return torch.where(images > 0.5, 1 - images, images)


def invert(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:  # noqa: ARG001
    """The negative."""
    return 1 - images


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, largest_sigma: float) -> torch.Tensor:
    """Blurs each of [B, C, S, S] with its own standard deviation [B] in pixels; the border is mirrored.

    Kernels reach as far as twice the largest standard deviation that may be drawn, so that an image's blur does not
    depend on those of its neighbours.
    """
    count, channels, side, _ = images.shape
    radius = min(max(1, math.ceil(2 * largest_sigma)), side - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernels = (
        (kernels / kernels.sum(1, keepdim=True)).to(images).repeat_interleave(channels, 0)
    )  # [B * C, 2 radius + 1]
    rows = images.reshape(1, count * channels, side, side)
    rows = F.conv2d(F.pad(rows, (radius, radius, 0, 0), "reflect"), kernels[:, None, None, :], groups=len(kernels))
    rows = F.conv2d(F.pad(rows, (0, 0, radius, radius), "reflect"), kernels[:, None, :, None], groups=len(kernels))
    return rows.reshape(images.shape)


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiplies by `factor` [B, 1, 1, 1] and clamps to 0..1."""
    return (images * factor).clamp(0, 1)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Moves away from (factor > 1) or towards the mean luma of each image."""
    return _blend(images, grey(images).mean((2, 3), keepdim=True), factor)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Moves away from (factor > 1) or towards the luma of each pixel."""
    return _blend(images, grey(images), factor)


def adjust_hue(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turns the hue of every pixel by `shift` [B, 1, 1, 1], where 1 is the whole circle; value and saturation stay.

    In HSV each channel is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + 6 hue) mod 6, n = 5, 3, 1.
    """
    value, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - smallest
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue6 = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    k = (images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1) + hue6 + 6 * shift) % 6
    return (value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


def _blend(images: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _per_image(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """[B] on the CPU -> [B, 1, 1, 1] beside the images."""
    return values.view(-1, 1, 1, 1).to(images.device, non_blocking=True)
