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
    """The learning rate of a step: a function of nothing else, so that a resume needs no state.

    Args:
        learning_rate: after the warmup, before decay.
        kind: "constant"; "cosine", down to final_ratio at the last step; "steps", times 0.1 at each of decay_steps.
        warmup_steps: linear, from warmup_ratio.
        num_steps: of the stage.
        warmup_ratio: of the learning rate, where the warmup starts.
        final_ratio: of the learning rate, where the cosine ends.
        decay_steps: see kind.
    """

    learning_rate: float
    kind: str
    warmup_steps: int
    num_steps: int
    warmup_ratio: float = 0.0
    final_ratio: float = 0.0
    decay_steps: tuple[int, ...] = ()

    def at(self, step: int) -> float:
        """Of the step with this number in the stage, from 0."""
        if step < self.warmup_steps:
            progress = (step + 1) / self.warmup_steps
            return self.learning_rate * (self.warmup_ratio + (1.0 - self.warmup_ratio) * progress)
        if self.kind == "cosine":
            progress = min(1.0, (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps))
            falling = 0.5 * (1.0 + math.cos(math.pi * progress))
            return self.learning_rate * (self.final_ratio + (1.0 - self.final_ratio) * falling)
        if self.kind == "steps":
            return self.learning_rate * 0.1 ** sum(step >= decay for decay in self.decay_steps)
        return self.learning_rate


@dataclass(frozen=True)
class Larc:
    """Layer-wise adaptive rate scaling (LARS, You, Gitman and Ginsburg, 2017), by default as SwAV is trained with.

    Args:
        trust: a layer's update is this share of its weights' norm, times the learning rate.
        clip: and at most what SGD would do, in which case `trust` alone bounds the share.
    """

    trust: float = 1e-3
    clip: bool = False

    @torch.no_grad()
    def adapt(self, parameters: list[nn.Parameter], weight_decay: float, learning_rate: float) -> None:
        """Scales each gradient by trust * |w| / (|g| + weight_decay * |w|), weight decay added before, in place.

        Parameters or gradients of zeros are left as they are.
        """
        for parameter in parameters:
            if parameter.grad is None:
                continue
            weight_norm, gradient_norm = parameter.norm(), parameter.grad.norm()
            rate = self.trust * weight_norm / (gradient_norm + weight_decay * weight_norm + 1e-8)
            if self.clip:
                rate = (rate / learning_rate).clamp(max=1.0)
            adapts = (weight_norm > 0) & (gradient_norm > 0)
            adapted = (parameter.grad + weight_decay * parameter) * rate
            parameter.grad.copy_(torch.where(adapts, adapted, parameter.grad))


class Optimizer:
    """SGD, SGD with LARC, Adam or AdamW over a method's parameter groups.

    Args:
        groups: as Method.parameter_groups gives them.
        names: parameter -> name, for the state.
        kind: "sgd", "larc", "adam" or "adamw".
        momentum: of SGD, where a group has none of its own.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        schedule: learning rate of each step; a group's "learning_rate_scale" multiplies it.
        larc: how "larc" adapts.
        plain_vectors: parameters of one dimension, which are biases and batch normalisation's, have neither weight
            decay nor LARC.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        names: Mapping[torch.Tensor, str],
        kind: str,
        momentum: float,
        weight_decay: float,
        schedule: Schedule,
        larc: Larc = Larc(),
        plain_vectors: bool = False,
    ) -> None:
        self._names = names
        self._schedule = schedule
        self._kind = kind
        self._larc = larc
        self._weight_decay = weight_decay
        groups = [part for group in groups for part in (_by_shape(group) if plain_vectors else [group])]
        self._scales = [group.get("learning_rate_scale", 1.0) for group in groups]
        self._frozen_steps = [group.get("frozen_steps", 0) for group in groups]
        self._plain = [group.get("plain", False) for group in groups]
        own = [{"params": group["params"]} for group in groups]
        for target, plain in zip(own, self._plain, strict=True):
            target["weight_decay"] = 0.0 if plain or kind == "larc" else weight_decay
        self._optimizer: torch.optim.Optimizer
        if kind == "adamw":
            self._optimizer = torch.optim.AdamW(own, lr=schedule.learning_rate)
        elif kind == "adam":
            self._optimizer = torch.optim.Adam(own, lr=schedule.learning_rate)
        else:
            for target, group in zip(own, groups, strict=True):
                target["momentum"] = group.get("momentum", momentum)
            self._optimizer = torch.optim.SGD(own, lr=schedule.learning_rate)

    def step(self, step_in_stage: int, skip: bool = False) -> float:
        """One update from the gradients, or none; they are cleared. Returns the learning rate before scales."""
        learning_rate = self._schedule.at(step_in_stage)
        if skip:
            self._optimizer.zero_grad(set_to_none=True)
            return learning_rate
        groups = zip(self._optimizer.param_groups, self._scales, self._frozen_steps, self._plain, strict=True)
        for group, scale, frozen_steps, plain in groups:
            group["lr"] = learning_rate * scale
            if step_in_stage < frozen_steps:
                for parameter in group["params"]:
                    parameter.grad = None  # without a gradient nothing moves: neither weight decay nor momentum
            elif self._kind == "larc" and not plain:
                self._larc.adapt(group["params"], self._weight_decay, group["lr"])
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


def _by_shape(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group as two: what has more dimensions than one, and the vectors, which are plain."""
    parameters = list(group["params"])
    matrices = {**group, "params": [parameter for parameter in parameters if parameter.ndim > 1]}
    vectors = {**group, "params": [parameter for parameter in parameters if parameter.ndim <= 1], "plain": True}
    return [part for part in (matrices, vectors) if part["params"]]
