"""The layer that predicts clusters.

Shapes: B images, D features, K clusters.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


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
