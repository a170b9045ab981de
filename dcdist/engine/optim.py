"""Optimizers whose state is saved by parameter names, and learning rates that are functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a step: a function of nothing else, so that a resume needs no state."""

    learning_rate: float
    kind: str  # "constant" or "cosine"
    warmup_steps: int
    num_steps: int

    def at(self, step: int) -> float:
        """Of the step with this number in the stage, from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class Optimizer:
    """SGD or AdamW over a method's parameter groups.

    Args:
        groups: as Method.parameter_groups gives them.
        names: parameter -> name, for the state.
        kind: "sgd" or "adamw".
        momentum: of SGD, where a group has none of its own.
        weight_decay: L2 for SGD, decoupled for AdamW.
        schedule: learning rate of each step; a group's "learning_rate_scale" multiplies it.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        names: Mapping[torch.Tensor, str],
        kind: str,
        momentum: float,
        weight_decay: float,
        schedule: Schedule,
    ) -> None:
        self._names = names
        self._schedule = schedule
        self._scales = [group.get("learning_rate_scale", 1.0) for group in groups]
        plain = [{"params": group["params"]} for group in groups]
        self._optimizer: torch.optim.Optimizer
        if kind == "sgd":
            for target, group in zip(plain, groups, strict=True):
                target["momentum"] = group.get("momentum", momentum)
            self._optimizer = torch.optim.SGD(plain, lr=schedule.learning_rate, weight_decay=weight_decay)
        else:
            self._optimizer = torch.optim.AdamW(plain, lr=schedule.learning_rate, weight_decay=weight_decay)

    def step(self, step_in_stage: int) -> float:
        """One update from the gradients, which are then cleared. Returns the learning rate before scales."""
        learning_rate = self._schedule.at(step_in_stage)
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = learning_rate * scale
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return learning_rate

    def forget(self, parameters: list[nn.Parameter]) -> None:
        """Clears the state (momentum, moments) of parameters that start anew."""
        for parameter in parameters:
            self._optimizer.state.pop(parameter, None)

    def state_dict(self) -> dict[str, Any]:
        """{parameter name: its state}; learning rates are functions of the step and not in it."""
        return {self._names[parameter]: dict(state) for parameter, state in self._optimizer.state.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        self._optimizer.state.clear()
        for name, values in state.items():
            parameter = parameters[name]
            self._optimizer.state[parameter] = {
                # AdamW's step count lives on the CPU, moments beside their parameter.
                key: value.to(parameter.device) if torch.is_tensor(value) and value.ndim else value
                for key, value in values.items()
            }
