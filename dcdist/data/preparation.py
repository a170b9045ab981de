"""From a batch of bytes on the device to what a network sees: float conversion, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcdist.data.augment import BatchAugmentation, normalize, to_float
from dcdist.data.loader import Batch
from dcdist.distributed.seeding import torch_generator


@dataclass(frozen=True)
class Preparation:
    """The arithmetic on pixels, the same on every device."""

    mean: Sequence[float]
    std: Sequence[float]
    augmentation: BatchAugmentation

    def evaluate(self, batch: Batch) -> Batch:
        """The views as normalised float [B, 3, S, S] in channels_last memory."""
        return batch._replace(views=tuple(to_float(view, self.mean, self.std) for view in batch.views))

    def train(self, batch: Batch) -> Batch:
        """The same after random geometry and colour, which the batch's seed decides."""
        augmented = (
            self.augmentation(to_float(view), torch_generator(batch.seed, "augment", number))
            for number, view in enumerate(batch.views)
        )
        return batch._replace(views=tuple(normalize(view, self.mean, self.std) for view in augmented))
