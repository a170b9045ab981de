"""The layer that predicts clusters, and what is left of it when training is done.

Shapes: B images, D features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional


class Embedder(Protocol):
    """A module that turns normalised images [B, 3, S, S] into rows [B, num_features]."""

    num_features: int
    training: bool

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images -> rows."""
        ...

    def train(self, mode: bool = True) -> object:
        """As nn.Module's."""
        ...


@dataclass(frozen=True)
class Classifier:
    """A linear layer on a backbone's features, as plain tensors."""

    weight: torch.Tensor  # [K, D]
    bias: torch.Tensor  # [K]
    relu_first: bool

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of any float type -> [B, K] float32, where the features lie."""
        inputs = functional.relu(features.float()) if self.relu_first else features.float()
        return functional.linear(inputs, self.weight.to(inputs.device), self.bias.to(inputs.device))


class ClusterHead(nn.Module):
    """A linear classifier over clusters, reset in place whenever the clusters are new.

    In place, because a replaced parameter is unknown to the optimizer and to DDP. Its capacity is fixed; where a
    clusterer finds fewer clusters, the unused logits are left out.
    """

    def __init__(self, num_features: int, capacity: int, relu_first: bool) -> None:
        super().__init__()
        self.relu_first = relu_first
        self.linear = nn.Linear(num_features, capacity)
        self.num_active = capacity

    # Part of the state, but no buffer: reading it on a GPU would wait for the GPU in every forward pass.
    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.num_active)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.num_active = int(state)

    def reset(self, num_clusters: int, generator: torch.Generator) -> None:
        """Weights N(0, 0.01), biases 0 (the published re-initialisation), for the first `num_clusters` logits."""
        capacity = self.linear.out_features
        if not 1 <= num_clusters <= capacity:
            raise ValueError(f"{num_clusters} clusters do not fit the head's {capacity} logits")
        with torch.no_grad():
            weights = torch.empty(self.linear.weight.shape).normal_(0.0, 0.01, generator=generator)
            self.linear.weight.copy_(weights)
            self.linear.bias.zero_()
        self.num_active = num_clusters

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, D] -> logits [B, K of the last reset]."""
        inputs = functional.relu(features) if self.relu_first else features
        logits: torch.Tensor = self.linear(inputs)
        return logits[:, : self.num_active]


class LinearHeads(nn.Module):
    """Several linear classifiers over the same classes, side by side."""

    def __init__(self, num_features: int, num_classes: int, num_heads: int, relu_first: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_heads = num_heads
        self.relu_first = relu_first
        self.linear = nn.Linear(num_features, num_heads * num_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, D] -> logits [B, heads, K]."""
        inputs = functional.relu(features) if self.relu_first else features
        logits: torch.Tensor = self.linear(inputs)
        return logits.view(len(logits), self.num_heads, self.num_classes)

    def classifier(self, head: int) -> Classifier:
        """One head by itself."""
        rows = slice(head * self.num_classes, (head + 1) * self.num_classes)
        weight, bias = (parameter.detach()[rows].cpu().clone() for parameter in (self.linear.weight, self.linear.bias))
        return Classifier(weight, bias, self.relu_first)

    @torch.no_grad()
    def set(self, classifier: Classifier) -> None:
        """Every head becomes this one."""
        self.linear.weight.copy_(classifier.weight.repeat(self.num_heads, 1))
        self.linear.bias.copy_(classifier.bias.repeat(self.num_heads))


class Prototypes(nn.Module):
    """Centroids of length 1 that embeddings of length 1 are compared with; set, never learnt.

    The capacity is fixed; where a clusterer finds fewer clusters, the unused cosines are left out.
    """

    weight: torch.Tensor

    def __init__(self, capacity: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(capacity, dimensions))
        self.num_active = capacity

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.num_active)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.num_active = int(state)

    @torch.no_grad()
    def set(self, centroids: torch.Tensor) -> None:
        """Takes centroids [K, E] of any length, K at most the capacity."""
        self.num_active = len(centroids)
        self.weight.zero_()
        self.weight[: len(centroids)] = functional.normalize(centroids, dim=1).to(self.weight.device)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., E] -> cosines [..., K] float32."""
        return scores_in_fp32(embeddings, self.weight[: self.num_active])


def scores_in_fp32(embeddings: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Embeddings [..., E] times prototypes [K, E] -> [..., K] float32, also under autocast.

    In bf16 neighbouring cosines near 1 lie 0.004 apart, which temperatures and Sinkhorn's epsilon divide.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return functional.linear(embeddings.float(), weight)
