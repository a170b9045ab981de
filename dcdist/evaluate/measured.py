"""What may be chosen of an evaluation, and what there is to measure of one network.

Shapes: L labelled images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dcdist.evaluation.clusters import Partition
from dcdist.evaluation.feature_sets import PIXELS, TRAINED, UNTRAINED

Labelled = tuple[torch.Tensor, torch.Tensor]  # features [L, D] float32, labels [L] int64


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What a person may choose of every kind of evaluation on labelled images; None is as the run has it."""

    stage: str | None = None  # as this stage left the run; None: as it is
    data: str | None = None
    split: str | None = None  # "none": all images but those that are held out
    heldout_split: str | None = None  # "none": no images are held out
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """What may be chosen where features are extracted once."""

    num_seeds: int = 3
    neighbors: tuple[int, ...] = (10, 20, 100, 200)
    whitening_dimensions: int | None = None
    feature_sets: tuple[str, ...] = (PIXELS, UNTRAINED, TRAINED)

    @property
    def seeds(self) -> range:
        return range(self.num_seeds)


@dataclass(frozen=True)
class FinalClusters:
    """The run's own final clustering, of all images."""

    num_clusters: int
    train: Partition
    heldout: Partition | None
    agreement_with_run: float | None  # share of training images as in RUN/assignments; None where that has others


@dataclass(frozen=True)
class Measured:
    """The features of one network."""

    name: str
    train: Labelled
    heldout: Labelled | None
    final: FinalClusters | None  # of the trained network alone
