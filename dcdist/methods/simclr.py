"""SimCLR (Chen et al., ICML 2020): two views of an image find each other among all views of the step.

Shapes: B samples of a step, E dimensions of the embedding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from dcdist.clustering.types import Clustering
from dcdist.data.transforms import View
from dcdist.methods.base import EpochLength, EpochPlan, Method, Microbatch, Stream
from dcdist.models.backbone import Backbone
from dcdist.models.projection import Projector, embed_views

NUM_VIEWS = 2


class Outputs(NamedTuple):
    """Of a step of B samples."""

    embeddings: torch.Tensor  # [B, 2, E], rows of length 1


class Simclr(Method):
    """Contrastive learning; the pretext of SCAN.

    Args:
        backbone: what learns.
        projector: behind it, to E dimensions.
        views: two.
        seed: where the order of an epoch derives from.
        length: how long an epoch is.
        temperature: of the softmax over cosines.
    """

    couples_samples = True
    num_views = (2, 2)
    remedy = "a lower train.learning_rate, a warmup, or a larger train.batch_size"

    def __init__(
        self,
        backbone: Backbone,
        projector: Projector,
        views: tuple[View, ...],
        seed: int,
        length: EpochLength,
        temperature: float,
    ) -> None:
        super().__init__()
        assert len(views) == NUM_VIEWS
        self.backbone = backbone
        self.projector = projector
        self.views = views
        self.seed = seed
        self.length = length
        self.temperature = temperature

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        return Outputs(embed_views(self.backbone, self.projector, batch.views))

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """The normalised temperature-scaled cross-entropy (equation 1) of all 2 B views."""
        rows = torch.cat(outputs.embeddings.unbind(1))  # [2 B, E]
        similarities = rows @ rows.T / self.temperature
        similarities.fill_diagonal_(-torch.inf)
        partners = torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
        return {"contrast": functional.cross_entropy(similarities, partners)}

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:  # noqa: ARG002
        sample_ids = self.length.order(usable, self.seed, epoch)
        return EpochPlan({"images": Stream(sample_ids, None, self.views)}, self.length.num_steps(len(usable)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]

    def chance_losses(self) -> dict[str, float]:
        return {"contrast": math.log(NUM_VIEWS * self.length.batch_size - 1)}
