"""Strong augmentation of single images in the loader's workers: random operations on colours and geometry, cutout.

Shapes: S pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

_GREY = 128

Operation = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class StrongAugmentation:
    """What SCAN shows the network beside weak views (Van Gansbeke et al., ECCV 2020; RandAugment, Cubuk et al., 2020).

    Args:
        num_operations: of the fourteen of `operations` in a row, each drawn anew, with a uniform strength.
        cutout: a square of random side 1..cutout, around a random pixel, cut off at the border, becomes grey (DeVries
            and Taylor, 2017); 0 for none.
    """

    num_operations: int
    cutout: int

    def __call__(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """uint8 [S, S, 3] -> the same; `seed` decides."""
        generator = torch.Generator().manual_seed(seed)
        table = list(operations().values()) if self.num_operations else []
        image = pixels.permute(2, 0, 1)
        for _ in range(self.num_operations):
            apply, least, most = table[int(torch.randint(len(table), (), generator=generator))]
            image = apply(image, least + (most - least) * float(torch.rand((), generator=generator)))
        pixels = image.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
        if self.cutout:
            length = int(torch.randint(1, self.cutout + 1, (), generator=generator))
            middle = torch.randint(pixels.shape[0], (2,), generator=generator)
            top, left = (middle - length // 2).tolist()
            pixels[max(0, top) : top + length, max(0, left) : left + length] = _GREY
        return pixels


@cache
def operations() -> dict[str, tuple[Operation, float, float]]:
    """Name -> (operation on uint8 [3, S, S], its least and its largest strength), by SCAN's ranges.

    Those of RandAugment are wider. SCAN moves and shears by a tenth of the side at most (it shears about a corner, here
    the middle stays), and takes brightness, contrast, colour and sharpness only away: a pseudo-label has to hold for
    what is made of its image.
    """
    from torchvision.transforms.v2 import functional  # takes a second, and only workers of a strong view need it

    def moved(image: torch.Tensor, across: float, down: float) -> torch.Tensor:
        side = image.shape[-1]
        found: torch.Tensor = functional.affine(image, 0.0, [round(across * side), round(down * side)], 1.0, [0.0, 0.0])
        return found

    def sheared(image: torch.Tensor, across: float, down: float) -> torch.Tensor:
        degrees = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
        found: torch.Tensor = functional.affine(image, 0.0, [0, 0], 1.0, degrees)
        return found

    return {
        "identity": (lambda image, _: image, 0.0, 0.0),
        "autocontrast": (lambda image, _: functional.autocontrast(image), 0.0, 0.0),
        "equalize": (lambda image, _: functional.equalize(image), 0.0, 0.0),
        "brightness": (functional.adjust_brightness, 0.05, 0.95),
        "color": (functional.adjust_saturation, 0.05, 0.95),
        "contrast": (functional.adjust_contrast, 0.05, 0.95),
        "sharpness": (functional.adjust_sharpness, 0.05, 0.95),
        "posterize": (lambda image, bits: functional.posterize(image, int(bits)), 4.0, 8.0),
        "solarize": (functional.solarize, 0.0, 255.0),
        "rotate": (functional.rotate, -30.0, 30.0),
        "shear across": (lambda image, slope: sheared(image, slope, 0.0), -0.1, 0.1),
        "shear down": (lambda image, slope: sheared(image, 0.0, slope), -0.1, 0.1),
        "move across": (lambda image, share: moved(image, share, 0.0), -0.1, 0.1),
        "move down": (lambda image, share: moved(image, 0.0, share), -0.1, 0.1),
    }
