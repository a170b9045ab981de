"""From a batch of bytes on the device to what a network sees: float conversion, augmentation, normalisation, tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dcdist.data.augment import to_float
from dcdist.data.loader import Batch
from dcdist.data.transforms import View
from dcdist.distributed.seeding import torch_generator


def prepare(batch: Batch, views: Sequence[View]) -> Batch:
    """The pixels of each view as float [B, 3, S, S] in channels_last memory (tiles: [B, T, 3, s, s]).

    Random geometry, colour and tiles, as the view has them, are decided by the batch's seed; the same on every device.
    """
    prepared = (
        _seen(pixels, view, torch_generator(batch.seed, "augment", number))
        for number, (pixels, view) in enumerate(zip(batch.views, views, strict=True))
    )
    return batch._replace(views=tuple(prepared))


def _seen(pixels: torch.Tensor, view: View, generator: torch.Generator) -> torch.Tensor:
    images = view.augmentation(to_float(pixels), generator)
    if view.tiles is None:
        return view.normalization(images)
    return view.tiles(images if view.tiles.normalize else view.normalization(images), generator)
