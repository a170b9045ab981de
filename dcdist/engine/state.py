"""The parts of a run's state beside the optimizer: where it is, what it trains on, and the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dcdist.clustering.pca import PCA
from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.methods.base import Method


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
            "neighbors": self.clustering.neighbors if self.clustering else None,
            "pca": self.pca.state_dict() if self.pca else None,
            "heldout_targets": self.heldout_targets,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads = tuple(HeadClustering(**head) for head in state["heads"])
        neighbors = state["neighbors"]
        self.clustering = Clustering(heads, neighbors) if heads or neighbors is not None else None
        self.pca = PCA.from_state_dict(state["pca"]) if state["pca"] else None
        self.heldout_targets = state["heldout_targets"]


class Decodability:
    """Which images do not decode, once a pass over all of them has told."""

    def __init__(self) -> None:
        self.undecodable: list[int] | None = None  # sample ids, ascending; None until they are known
        self.said: set[str] = set()  # what this attempt has said of undecodable images in the log

    def usable(self, num_samples: int) -> np.ndarray:
        """Sample ids [U] int64, ascending, of those that decode."""
        assert self.undecodable is not None
        return np.setdiff1d(np.arange(num_samples), np.array(self.undecodable, np.int64))

    def state_dict(self) -> dict[str, Any]:
        return {"undecodable": self.undecodable}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.undecodable = state["undecodable"]


class MethodState:
    """A method's parameters and buffers. What several modules share (a joint method's backbone) is stored once."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def state_dict(self) -> dict[str, Any]:
        state = self._method.state_dict()
        return {name: state[name] for name, first in self._first_names(state).items() if name == first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        firsts = self._first_names(self._method.state_dict())
        shared = {name: state[first] for name, first in firsts.items() if first in state}
        self._method.load_state_dict({**state, **shared})

    def _first_names(self, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """Name -> the first name of the same tensor."""
        first_of: dict[tuple[int, tuple[int, ...]], str] = {}
        return {
            name: first_of.setdefault((value.data_ptr(), tuple(value.shape)), name) if value.numel() else name
            for name, value in state.items()
        }
