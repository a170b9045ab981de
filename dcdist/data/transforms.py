"""How an image is seen: crops in the loader's workers, uint8 in and out; arithmetic on colours runs on the device.

Randomness is drawn for a whole request before any image is looked at, so an image that fails changes no other.
Shapes: B images of a request, S pixels a side of what comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from dcdist.data.augment import BatchAugmentation, Normalization
from dcdist.data.strong import StrongAugmentation
from dcdist.data.tiles import Tiles

NUM_ATTEMPTS = 10  # random crops tried before the central one is taken, as in torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Draws:
    """The random numbers of one view of B images, each uniform in [0, 1)."""

    area: np.ndarray[Any, Any]  # [B, NUM_ATTEMPTS]
    ratio: np.ndarray[Any, Any]  # [B, NUM_ATTEMPTS]
    position: np.ndarray[Any, Any]  # [B, 2]: of the crop, vertical and horizontal
    flip: np.ndarray[Any, Any]  # [B]
    strong: np.ndarray[Any, Any]  # [B] int64 seeds of the strong augmentation; empty where the view has none


@dataclass(frozen=True)
class View:
    """How a square of `size` pixels is cut out of an image, and what is done to its pixels.

    `center`: the short side becomes `resize`, then the middle is cut out (Resize + CenterCrop); computed as a crop, its
    edges rounded to whole pixels of the source, that is then resized; `position` moves it from the middle to an edge or
    a corner. `random`: anywhere in the central square of `resize` pixels (Resize + CenterCrop + RandomCrop, as
    Krizhevsky et al. 2012 take 224 of 256). `random_resized`: a crop of random area and
    aspect ratio (Szegedy et al. 2015, as torchvision draws it). `full`: the whole image, squeezed. Every resize is
    bilinear and antialiased.
    """

    size: int
    crop: Literal["center", "random", "random_resized", "full"] = "center"
    resize: int | None = None  # None: size
    position: tuple[float, float] = (0.5, 0.5)  # of the central crop: 0 is the top or the left edge, 1 the other
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    horizontal_flip: bool = False  # of half of the images
    strong: StrongAugmentation | None = None  # in the worker, after the crop
    augmentation: BatchAugmentation = field(default_factory=BatchAugmentation)  # on the device
    normalization: Normalization = Normalization()  # noqa: RUF009 (frozen); on the device, then
    tiles: Tiles | None = None  # on the device, last: the view becomes tiles

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a view's size is {self.size}, it must be at least 1 pixel")
        if self.crop not in ("center", "random", "random_resized", "full"):
            raise ValueError(f"unknown crop {self.crop!r}: center, random, random_resized and full are known")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"the short side becomes {self.resize}: too small to cut {self.size} pixels out")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}: two shares of the area, 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}: width / height, 0 < smallest <= largest")

    def draw(self, generator: np.random.Generator, count: int) -> Draws:
        """All random numbers for `count` images, equally many whatever the images are."""
        numbers = generator.random((count, 2 * NUM_ATTEMPTS + 3))
        return Draws(
            area=numbers[:, :NUM_ATTEMPTS],
            ratio=numbers[:, NUM_ATTEMPTS : 2 * NUM_ATTEMPTS],
            position=numbers[:, -3:-1],
            flip=numbers[:, -1],
            strong=generator.integers(2**63, size=count if self.strong else 0),
        )

    def apply(self, image: np.ndarray[Any, Any], draws: Draws, index: int) -> torch.Tensor:
        """uint8 [H, W, 3] (NumPy) -> uint8 [S, S, 3] (torch) with the random numbers of the index-th image."""
        image_height, image_width = image.shape[:2]
        top, left, height, width = self._box(image_height, image_width, draws, index)
        # A leading axis before permuting: with the strides of channels_last the resize takes its vectorised path.
        pixels = torch.from_numpy(np.ascontiguousarray(image[None, top : top + height, left : left + width]))
        if (height, width) != (self.size, self.size):
            pixels = F.interpolate(
                pixels.permute(0, 3, 1, 2), size=(self.size, self.size), mode="bilinear", antialias=True
            ).permute(0, 2, 3, 1)
        if self.horizontal_flip and draws.flip[index] < 0.5:
            pixels = pixels.flip(2)
        return self.strong(pixels[0], int(draws.strong[index])) if self.strong else pixels[0]

    def _box(self, height: int, width: int, draws: Draws, index: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop, in pixels of the source."""
        if self.crop == "full":
            return 0, 0, height, width
        if self.crop == "center":
            return center_box(height, width, self.resize or self.size, self.size, self.position)
        if self.crop == "random":
            square = self.resize or self.size
            return _box_within(center_box(height, width, square, square), self.size / square, draws.position[index])
        return self._random_box(height, width, draws, index)

    def _random_box(self, height: int, width: int, draws: Draws, index: int) -> tuple[int, int, int, int]:
        smallest, largest = self.scale
        log_narrow, log_wide = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, ratio_draw in zip(draws.area[index].tolist(), draws.ratio[index].tolist(), strict=True):
            area = height * width * (smallest + (largest - smallest) * area_draw)
            ratio = math.exp(log_narrow + (log_wide - log_narrow) * ratio_draw)
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                down, right = draws.position[index].tolist()
                top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        # No attempt fitted: the largest central crop whose ratio is allowed.
        crop_height, crop_width = height, width
        if width / height < self.ratio[0]:
            crop_height = min(height, max(1, round(width / self.ratio[0])))
        elif width / height > self.ratio[1]:
            crop_width = min(width, max(1, round(height * self.ratio[1])))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def center_box(
    height: int, width: int, resize: int, size: int, position: tuple[float, float] = (0.5, 0.5)
) -> tuple[int, int, int, int]:
    """The part of an image that resizing its short side to `resize` and cutting out `size` pixels shows.

    By default the central ones; `position` is how far down and right they lie, 0 to 1.
    """
    short = min(height, width)
    resized = [resize if side == short else int(resize * side / short) for side in (height, width)]
    edges = []
    for side, resized_side, share in zip((height, width), resized, position, strict=True):
        start = round((resized_side - size) * share)
        low = round(start * side / resized_side)
        high = round((start + size) * side / resized_side)
        edges.append((low, max(1, high - low)))
    (top, crop_height), (left, crop_width) = edges
    return min(top, height - crop_height), min(left, width - crop_width), crop_height, crop_width


def _box_within(
    box: tuple[int, int, int, int], share: float, position: np.ndarray[Any, Any]
) -> tuple[int, int, int, int]:
    """A box of `share` of each side of another one, anywhere in it: two uniform numbers say where."""
    top, left, *sides = box
    height, width = (max(1, round(side * share)) for side in sides)
    down, right = position.tolist()
    return top + int(down * (sides[0] - height + 1)), left + int(right * (sides[1] - width + 1)), height, width
