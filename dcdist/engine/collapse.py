"""Says when training begins to collapse, and what usually helps; by config it ends the run there.

Shapes: K clusters, prototypes or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dcdist.methods.base import SKIPPED, USAGE
from dcdist.metrics.cluster_metrics import cluster_sizes, size_entropy_ratio, size_max_ratio

_LEAST_ENTROPY_RATIO = 0.5
_LARGEST_FALL = 0.25  # of the entropy ratio, since the stage's first clustering
_LARGEST_SHARE = 0.5  # of one cluster, where there are more than a few
_FEW_CLUSTERS = 4
_AT_CHANCE = 0.01  # of the loss of a network that says nothing, to either side; sure and wrong costs more than it
_EPOCHS_AT_CHANCE = 2  # in a row, and
_STEPS_AT_CHANCE = 200  # so many: a new head needs some


@dataclass
class CollapseWatch:
    """Looks at every clustering and epoch.

    Args:
        chance_losses: gives the loss of a network that says nothing, by name (log K).
        remedy: what to change, for the message.
    """

    chance_losses: Callable[[], Mapping[str, float]]
    remedy: str
    _first_entropy_ratio: dict[str, float] = field(default_factory=dict)
    _at_chance: dict[str, tuple[int, int]] = field(default_factory=dict)  # epochs and steps in a row

    def state_dict(self) -> dict[str, Any]:
        """What it remembers of the stage."""
        return {"first_entropy_ratio": self._first_entropy_ratio, "at_chance": self._at_chance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._first_entropy_ratio = dict(state["first_entropy_ratio"])
        self._at_chance = {name: (epochs, steps) for name, (epochs, steps) in state["at_chance"].items()}

    def clustering(self, head: int, assignments: np.ndarray, num_clusters: int) -> str | None:
        """What is wrong with the sizes of a head's clusters, with the remedy; None where nothing is."""
        sizes = cluster_sizes(assignments, num_clusters)
        ratio, largest = size_entropy_ratio(sizes), size_max_ratio(sizes)
        first = self._first_entropy_ratio.setdefault(str(head), float(ratio))
        if num_clusters == 1:
            return self._message(f"all images are in the one cluster that head {head} has")
        if largest > _LARGEST_SHARE and num_clusters > _FEW_CLUSTERS:
            return self._message(f"one of the {num_clusters} clusters of head {head} holds {largest:.0%} of the images")
        if ratio < _LEAST_ENTROPY_RATIO or ratio < first - _LARGEST_FALL:
            return self._message(
                f"the {num_clusters} clusters of head {head} have become unequal: their size entropy is {ratio:.2f} of "
                f"log K, at first it was {first:.2f}"
            )
        return None

    def epoch(self, losses: Mapping[str, float], figures: Mapping[str, float], num_steps: int) -> str | None:
        """What is wrong with an epoch's mean losses and figures, with the remedy; None where nothing is."""
        chances = self.chance_losses()
        for name, chance in chances.items():
            at_chance = name in losses and abs(losses[name] - chance) <= _AT_CHANCE * chance
            epochs, steps = self._at_chance.get(name, (0, 0))
            self._at_chance[name] = (epochs + 1, steps + num_steps) if at_chance else (0, 0)
        if any(value == 1.0 for name, value in figures.items() if name.endswith(SKIPPED)):
            return self._message("no step of the epoch had an image that was sure enough to learn from")
        usage = min((value for name, value in figures.items() if name.endswith(USAGE)), default=1.0)
        if usage < _LEAST_ENTROPY_RATIO:
            return self._message(f"few clusters are used: the entropy of the mean assignment is {usage:.2f} of log K")
        for name, (epochs, steps) in self._at_chance.items():
            if epochs >= _EPOCHS_AT_CHANCE and steps >= _STEPS_AT_CHANCE:
                return self._message(
                    f"the loss {name!r} has stayed at {losses[name]:.3f}, what a network that says nothing gets "
                    f"({chances[name]:.3f}), for {epochs} epochs"
                )
        return None

    def _message(self, symptom: str) -> str:
        return f"training seems to collapse: {symptom}. What usually helps: {self.remedy}"
