"""SwAV (Caron et al., NeurIPS 2020): predict one view's balanced code from the other views of the image.

Shapes: B samples of a step, V views, K prototypes, E dimensions of the embedding, L length of the queue.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dcdist.clustering.sinkhorn import sinkhorn
from dcdist.clustering.types import Clustering
from dcdist.data.transforms import View
from dcdist.methods.base import EpochLength, EpochPlan, Method, Microbatch, Stream, usage_entropy_ratio
from dcdist.models.backbone import Backbone
from dcdist.models.heads import scores_in_fp32
from dcdist.models.projection import Projector, embed_views

NUM_CODE_VIEWS = 2  # the first views of an image get codes, all other views predict them


class Outputs(NamedTuple):
    """Of a step of B samples."""

    embeddings: torch.Tensor  # [B, 2, E], of the first views, without gradient
    scores: torch.Tensor  # [B, V, K], cosines with the prototypes


class Swav(Method):
    """Codes are equally shared among the prototypes over the whole step (and the queue), by Sinkhorn's iteration.

    Args:
        backbone: what learns.
        projector: behind it, to E dimensions.
        num_prototypes: K.
        views: how an image is seen; the first two get codes.
        seed: where the order of an epoch derives from.
        length: how long an epoch is.
        temperature: of the softmax over scores.
        epsilon: of the codes.
        sinkhorn_iterations: of the codes.
        queue_length: L; 0 for none.
        queue_from_step: the queue is filled from this step of the stage on, and used once it is full.
        frozen_prototype_steps: the prototypes do not learn for so many steps.
    """

    couples_samples = True
    num_views = (2, math.inf)
    remedy = "a smaller swav.epsilon (0.03), longer swav.frozen_prototype_steps, fewer prototypes, or a smaller queue"
    queue: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        projector: Projector,
        num_prototypes: int,
        views: tuple[View, ...],
        seed: int,
        length: EpochLength,
        temperature: float,
        epsilon: float,
        sinkhorn_iterations: int,
        queue_length: int,
        queue_from_step: int,
        frozen_prototype_steps: int,
    ) -> None:
        super().__init__()
        assert len(views) >= NUM_CODE_VIEWS
        self.backbone = backbone
        self.projector = projector
        self.prototypes = nn.Linear(projector.dimensions, num_prototypes, bias=False)
        self.normalize_prototypes()
        self.views = views
        self.seed = seed
        self.length = length
        self.temperature = temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.queue_from_step = queue_from_step
        self.frozen_prototype_steps = frozen_prototype_steps
        # Replicated, oldest first: every rank has the whole step's embeddings, so a resume needs no dealing out.
        self.register_buffer("queue", torch.zeros(NUM_CODE_VIEWS, queue_length, projector.dimensions))
        self.num_steps = 0
        self.num_queued = 0

    # Part of the state, but no buffers: reading them on a GPU would wait for it in every step.
    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor([self.num_steps, self.num_queued])

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.num_steps, self.num_queued = state.tolist()

    def forward(self, microbatch: Microbatch) -> Outputs:
        (batch,) = microbatch.values()
        embeddings = embed_views(self.backbone, self.projector, batch.views)
        scores = scores_in_fp32(embeddings, self.prototypes.weight)
        return Outputs(embeddings[:, :NUM_CODE_VIEWS].detach(), scores)

    def losses(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Cross-entropy of each code with the predictions of all other views (equation 2, over several crops)."""
        num_views = outputs.scores.shape[1]
        log_predictions = (outputs.scores / self.temperature).log_softmax(2)
        each = []
        for code_view in range(NUM_CODE_VIEWS):
            codes = self._codes(outputs.scores[:, code_view].detach(), code_view)
            for view in range(num_views):
                if view != code_view:
                    each.append(-(codes * log_predictions[:, view]).sum(1).mean())
        return {"codes": torch.stack(each).mean()}

    @torch.no_grad()
    def _codes(self, scores: torch.Tensor, view: int) -> torch.Tensor:
        """Scores [B, K] -> codes [B, K], balanced together with the queue where that is full."""
        num_samples = len(scores)
        if 0 < self.queue.shape[1] == self.num_queued:
            queued = scores_in_fp32(self.queue[view], self.prototypes.weight)
            scores = torch.cat([queued, scores])
        return sinkhorn(scores, self.epsilon, self.sinkhorn_iterations)[-num_samples:]

    def keep(self, outputs: Outputs) -> torch.Tensor:
        return outputs.embeddings

    def after_step(self, kept: torch.Tensor) -> None:
        if self.num_steps >= self.frozen_prototype_steps:  # before that it would only add roundings
            self.normalize_prototypes()
        length = self.queue.shape[1]
        if length and self.num_steps >= self.queue_from_step:
            self.queue.copy_(torch.cat([self.queue, kept.transpose(0, 1)], dim=1)[:, -length:])
            self.num_queued = min(length, self.num_queued + len(kept))
        self.num_steps += 1

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """To length 1 each, so that scores are cosines."""
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))

    def plan_epoch(self, epoch: int, usable: np.ndarray, clustering: Clustering | None) -> EpochPlan:  # noqa: ARG002
        sample_ids = self.length.order(usable, self.seed, epoch)
        return EpochPlan({"images": Stream(sample_ids, None, self.views)}, self.length.num_steps(len(usable)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        learning = [*self.backbone.parameters(), *self.projector.parameters()]
        prototypes = {"params": [self.prototypes.weight], "frozen_steps": self.frozen_prototype_steps}
        return [{"params": learning}, prototypes]

    def figures(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        return usage_entropy_ratio((outputs.scores[:, 0] / self.temperature).softmax(1))

    def chance_losses(self) -> dict[str, float]:
        return {"codes": math.log(self.prototypes.out_features)}
