"""From a batch of bytes on the device to what a network sees: float conversion, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcdist.data.augment import normalize, standardize, to_float
from dcdist.data.loader import Batch
from dcdist.data.transforms import View
from dcdist.distributed.seeding import torch_generator


@dataclass(frozen=True)
class Preparation:
    """The arithmetic on pixels, the same on every device."""

    mean: Sequence[float]
    std: Sequence[float]
    standardize: bool = False  # each image by its own mean and standard deviation, in place of these

    def __call__(self, batch: Batch, views: Sequence[View]) -> Batch:
        """The pixels of each view as normalised float [B, 3, S, S] in channels_last memory (tiles: [B, T, 3, S, S]).

        Random geometry, colour and tiles, as the view has them, are decided by the batch's seed.
        """
        prepared = (
            self._view(pixels, view, torch_generator(batch.seed, "augment", number))
            for number, (pixels, view) in enumerate(zip(batch.views, views, strict=True))
        )
        return batch._replace(views=tuple(prepared))

    def _view(self, pixels: torch.Tensor, view: View, generator: torch.Generator) -> torch.Tensor:
        images = view.augmentation(to_float(pixels), generator)
        if view.tiles is not None:
            return view.tiles(images, generator)
        return standardize(images) if self.standardize else normalize(images, self.mean, self.std)
