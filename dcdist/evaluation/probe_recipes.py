"""The published ways to train linear classifiers on frozen layers, and how their learning rates fall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dcdist.evaluation.probes import Pools


@dataclass(frozen=True)
class ProbeRecipe:
    """A schedule of SGD with momentum 0.9, how images are seen meanwhile, and how maps are pooled.

    The learning rate after t of T steps: `inverse_sqrt` r / sqrt(1 + r * weight_decay * t), `steps` a tenth after
    each of `drops` (epochs), `cosine` r / 2 * (1 + cos(pi t / T)).
    """

    learning_rate: float
    weight_decay: float
    num_epochs: int
    schedule: Literal["inverse_sqrt", "steps", "cosine"]
    drops: tuple[int, ...] = ()
    batch_size: int = 256
    crop: Literal["random", "random_resized", "center"] = "random"  # of training images
    pools: Pools = "deepcluster"
    normalize: bool = False
    layers: tuple[str, ...] = ()  # those that it was published for; none: all convolutions or blocks
    source: str = ""

    def learning_rate_at(self, step: int, steps_an_epoch: int) -> float:
        """Of the next step, when so many have been taken."""
        if self.schedule == "inverse_sqrt":
            return self.learning_rate / math.sqrt(1 + self.learning_rate * self.weight_decay * step)
        if self.schedule == "steps":
            passed = sum(step >= drop * steps_an_epoch for drop in self.drops)
            return float(self.learning_rate * 0.1**passed)
        return self.learning_rate / 2 * (1 + math.cos(math.pi * step / (steps_an_epoch * self.num_epochs)))


RECIPES = {
    "deepcluster": ProbeRecipe(
        0.01, 1e-4, 90, "inverse_sqrt", source="Caron et al. 2018, AlexNet, ImageNet and Places"
    ),
    "deepcluster-vgg16": ProbeRecipe(
        0.01, 1e-5, 100, "inverse_sqrt", source="Caron et al. 2018, VGG-16; learning rate 0.005 to 0.03 by layer"
    ),
    "goyal-imagenet": ProbeRecipe(
        *(0.01, 5e-4, 28, "steps", (8, 16, 24)),
        crop="random_resized",
        pools="goyal",
        normalize=True,
        source="Goyal et al. 2019, ImageNet",
    ),
    "goyal-places": ProbeRecipe(
        *(0.01, 5e-4, 14, "steps", (4, 8, 12)),
        crop="random_resized",
        pools="goyal",
        normalize=True,
        source="Goyal et al. 2019, Places205",
    ),
    "swav": ProbeRecipe(
        *(0.3, 1e-6, 100, "cosine"),
        crop="random_resized",
        layers=("output",),
        source="Caron et al. 2020, ResNet-50, ImageNet",
    ),
}
