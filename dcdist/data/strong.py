"""Strong augmentation of single images in the loader's workers: random operations on colours and geometry, cutout.

Shapes: S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

_MAGNITUDES = 31  # of torchvision's RandAugment: 0 is none, 30 the strongest
_GREY = 128


@dataclass(frozen=True)
class StrongAugmentation:
    """What SCAN shows the network beside weak views (Van Gansbeke et al., ECCV 2020; RandAugment, Cubuk et al., 2020).

    Args:
        num_operations: operations of RandAugment in a row, each with a random magnitude.
        cutout: a square of random side 1..cutout, around a random pixel, cut off at the border, becomes grey (DeVries
            and Taylor, 2017); 0 for none.
    """

    num_operations: int
    cutout: int

    def __call__(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """uint8 [S, S, 3] -> the same; `seed` decides."""
        side = pixels.shape[0]
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU's, too
            image = pixels.permute(2, 0, 1)
            for _ in range(self.num_operations):
                image = _operation(int(torch.randint(_MAGNITUDES, ())))(image)
            pixels = image.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
            if self.cutout:
                length = int(torch.randint(1, self.cutout + 1, ()))
                top, left = (torch.randint(side, (2,)) - length // 2).tolist()
                pixels[max(0, top) : top + length, max(0, left) : left + length] = _GREY
        return pixels


@cache
def _operation(magnitude: int) -> Any:
    from torchvision.transforms import v2  # takes a second, and only workers of a strong view need it

    return v2.RandAugment(num_ops=1, magnitude=magnitude, num_magnitude_bins=_MAGNITUDES, fill=[_GREY] * 3)
