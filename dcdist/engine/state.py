"""The parts of a run's state beside the network and the optimizer: where it is, and the clusters it trains on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dcdist.clustering.pca import PCA
from dcdist.clustering.types import Clustering, HeadClustering


@dataclass
class Progress:
    """Where a run is; changed in one place, the training loop."""

    stage: str = ""
    epoch: int = 0
    step_in_epoch: int = 0  # steps of this epoch that are done
    step: int = 0  # steps of the run that are done, over all stages
    step_in_stage: int = 0
    clustered_epoch: int = -1  # the epoch whose clustering was adopted last
    stage_done: bool = False

    def begin_stage(self, name: str) -> None:
        """The first epoch of a stage; steps of the run go on."""
        self.load_state_dict(asdict(Progress(stage=name, step=self.step)))

    def advance_step(self) -> None:
        self.step_in_epoch += 1
        self.step_in_stage += 1
        self.step += 1

    def advance_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in asdict(self):
            setattr(self, name, state[name])


class AdoptedClustering:
    """The clusters that training predicts, with all that made them from raw features."""

    def __init__(self) -> None:
        self.clustering: Clustering | None
        self.pca: PCA | None
        self.heldout_targets: torch.Tensor | None  # [number of held-out images] int32; None until they are computed
        self.clear()

    def set(self, clustering: Clustering, pca: PCA | None) -> None:
        """The targets of the held-out images come later."""
        self.clustering, self.pca, self.heldout_targets = clustering, pca, None

    def clear(self) -> None:
        """Before the first clustering of a stage."""
        self.clustering = self.pca = self.heldout_targets = None

    def state_dict(self) -> dict[str, Any]:
        heads = self.clustering.heads if self.clustering else ()
        return {
            "heads": [dict(vars(head)) for head in heads],
            "pca": self.pca.state_dict() if self.pca else None,
            "heldout_targets": self.heldout_targets,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads = tuple(HeadClustering(**head) for head in state["heads"])
        self.clustering = Clustering(heads) if heads else None
        self.pca = PCA.from_state_dict(state["pca"]) if state["pca"] else None
        self.heldout_targets = state["heldout_targets"]
