"""What the training loop asks of a method; the loop never asks which method it runs.

Shapes: P planned samples of an epoch, B samples of a microbatch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dcdist.clustering.types import Clustering
from dcdist.data.loader import Batch
from dcdist.data.transforms import View
from dcdist.models.backbone import Backbone

Microbatch = Mapping[str, Batch]  # a batch of each stream


@dataclass(frozen=True)
class Stream:
    """Samples in the order in which they are trained on."""

    sample_ids: np.ndarray  # [P] int64
    targets: np.ndarray | None  # [P] int64
    views: tuple[View, ...]


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains on: streams of equal length, side by side, that fill whole steps."""

    streams: Mapping[str, Stream]
    num_steps: int


class Method(nn.Module, ABC):
    """A way to learn features without labels. Subclasses are final: none is derived from another.

    Attributes:
        couples_samples: whether the losses couple the samples of a step; if so `losses` gets the outputs of the
            whole step instead of one microbatch's.
        needs_clustering: whether an epoch starts with features and clusters.
    """

    couples_samples = False
    needs_clustering = True
    backbone: Backbone

    @abstractmethod
    def forward(self, microbatch: Microbatch) -> Any:
        """Prepared images of one microbatch -> outputs."""

    @abstractmethod
    def losses(self, outputs: Any) -> dict[str, torch.Tensor]:
        """The named losses of the outputs, means over their samples; training minimises their sum."""

    @abstractmethod
    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:
        """Makes the clusters the targets; returns the parameters whose optimizer state no longer means anything."""

    @abstractmethod
    def plan_epoch(self, epoch: int, clustering: Clustering | None) -> EpochPlan:
        """What the epoch trains on: a pure function of its arguments."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: "params", and "learning_rate_scale" or "momentum" where they differ."""
