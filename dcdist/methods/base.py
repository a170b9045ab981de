"""What the training loop asks of a method; the loop never asks which method it runs.

Shapes: U usable samples (those that decode), P planned samples of an epoch, B samples of a microbatch or of a step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dcdist.clustering.bank import FeatureBank
from dcdist.clustering.types import Clustering
from dcdist.data.loader import Batch
from dcdist.data.transforms import View
from dcdist.distributed.seeding import numpy_generator
from dcdist.models.backbone import Backbone
from dcdist.models.heads import Classifier, Embedder

USAGE, SKIPPED = "usage_entropy_ratio", "skipped_ratio"  # figures that are watched for collapse
Microbatch = Mapping[str, Batch]  # a batch of each stream


@dataclass(frozen=True)
class Stream:
    """Samples in the order in which they are trained on."""

    sample_ids: np.ndarray  # [P] int64
    targets: np.ndarray | None  # [P] or [P, heads] int64
    views: tuple[View, ...]


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains on: streams of equal length, side by side, that fill whole steps."""

    streams: Mapping[str, Stream]
    num_steps: int


@dataclass(frozen=True)
class EpochLength:
    """How many samples an epoch has, always whole steps."""

    batch_size: int  # samples a step
    steps_per_epoch: int | None  # None: as many as pass over the usable samples once

    def num_steps(self, num_usable: int) -> int:
        """Steps of an epoch over U samples."""
        return self.steps_per_epoch or -(-num_usable // self.batch_size)

    def order(self, usable: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Sample ids [P] int64 of an epoch in random order: passes over the usable samples [U], the last cut short."""
        num_draws = self.num_steps(len(usable)) * self.batch_size
        generator = numpy_generator(seed, "order", epoch)
        passes = [generator.permutation(usable) for _ in range(-(-num_draws // len(usable)))]
        return np.concatenate(passes)[:num_draws]


class Method(nn.Module, ABC):
    """A way to learn features without labels. Subclasses are final: none is derived from another.

    Outputs are a NamedTuple, a mapping or a tuple of tensors whose first axis is the sample.

    Attributes:
        couples_samples: whether the losses couple the samples of a step. If so `losses` gets the outputs of the whole
            step, of all processes, in the order of the plan, as if one process had computed them.
        takes: what a clustering gives the method, each so many epochs, or neighbours once; None: nothing ever.
        clusters_embeddings: whether rows are clustered as `embedder` gives them; else features are, reduced as the
            config says.
        classifies: whether `classifier` is the final clustering; else features are clustered for that.
        sees_images: whether its views are images; else running statistics of what it sees do not serve them.
        num_views: of an image, where the method compares views: at least and at most.
        remedy: what usually helps where it collapses.
        backbone: what learns.
        bank: rows that training itself gathers to be clustered; None where a pass over the images gives them.
    """

    couples_samples = False
    takes: Literal["clusters", "neighbors"] | None = None
    clusters_embeddings = False
    classifies = False
    sees_images = True
    num_views: tuple[int, float] = (0, math.inf)
    remedy: str
    backbone: Backbone
    bank: FeatureBank | None = None

    @abstractmethod
    def forward(self, microbatch: Microbatch) -> Any:
        """Prepared images of one microbatch -> outputs."""

    @abstractmethod
    def losses(self, outputs: Any) -> dict[str, torch.Tensor]:
        """The named losses of the outputs, means over their samples; training minimises their sum.

        Of a method that couples samples none at all where a step has nothing to learn from: it is then skipped.
        """

    @abstractmethod
    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:
        """What the epoch trains on: a pure function of its arguments. `usable` [U] int64: the samples that decode."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: "params", and where they differ "learning_rate_scale", "momentum", "frozen_steps".

        For the first `frozen_steps` steps of the stage a group does not learn.
        """

    def begin(self, classifier: Classifier | None) -> None:
        """Called once where a stage begins, not where it is resumed.

        `classifier` is the final clustering of the stage before, where that is a linear classifier of its features.
        """

    def adopt(self, clustering: Clustering, generator: torch.Generator) -> list[nn.Parameter]:
        """Makes the clusters the targets; returns the parameters whose optimizer state no longer means anything."""
        raise NotImplementedError(f"{type(self).__name__} takes no clusters")

    def keep(self, outputs: Any) -> Any:  # noqa: ARG002
        """What `after_step` gets of the outputs that `losses` got, without gradients; of the whole step in any case."""
        return None

    def after_step(self, kept: Any) -> None:
        """What follows an update: queues, banks, averages of weights. `kept` is the same on every process."""

    def embedder(self) -> Embedder:
        """The module whose outputs fill the bank and are compared with centroids; shares the method's parameters."""
        return self.backbone

    def cluster_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, S, S] -> what the first head says of each cluster [B, K], where clusters are the targets."""
        raise NotImplementedError(f"{type(self).__name__} predicts no clusters")

    def classifier(self) -> Classifier | None:
        """The head whose largest logit is an image's final cluster; None where features are clustered for that."""
        return None

    def figures(self, outputs: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """What is recorded beside the losses, of the same outputs: shares and counts, means over their samples."""
        return {}

    def chance_losses(self) -> dict[str, float]:
        """What each named loss is where the network says nothing (log K): a loss that stays there has collapsed."""
        return {}


def usage_entropy_ratio(assignments: torch.Tensor) -> dict[str, torch.Tensor]:
    """The figure that says how evenly K clusters are used, from soft assignments [B, K].

    The entropy of their mean over what it can be at most: log K, or log B where sure assignments of few samples cannot
    reach more clusters.
    """
    num_reached = min(assignments.shape)
    entropy = torch.special.entr(assignments.mean(0)).sum()
    return {USAGE: (entropy / math.log(max(2, num_reached))).clamp(max=1.0)}
