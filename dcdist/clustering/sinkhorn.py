"""Codes that use every prototype equally, by the iteration of Sinkhorn and Knopp.

Shapes: B samples of a whole step, K prototypes.
"""

from __future__ import annotations

import torch

from dcdist.errors import UsageError


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, num_iterations: int = 3) -> torch.Tensor:
    """Soft assignments of samples to prototypes, balanced over the prototypes (SwAV, Caron et al., 2020, Algorithm 1).

    exp(scores / epsilon) is scaled in turn so that columns sum to 1/K and rows to 1/B; what is returned is B times
    that, so that each row sums to 1. Logarithms are scaled in place of the numbers, whose exponential would overflow at
    a small epsilon; as each scaling undoes a constant factor of the one before, the factors 1/K and 1/B drop out.
    No gradient passes.

    Args:
        scores: [B, K] similarities, of every rank's samples of the step.
        epsilon: above 0; the smaller, the harder the codes.
        num_iterations: at least 1.

    Returns:
        codes [B, K] float32.

    Raises:
        UsageError: epsilon or num_iterations out of range.
    """
    if not epsilon > 0 or num_iterations < 1:
        raise UsageError(
            f"epsilon={epsilon:g} and num_iterations={num_iterations} make no codes: "
            "set epsilon above 0 (SwAV: 0.05) and num_iterations to at least 1 (SwAV: 3)"
        )
    logarithms = scores.float() / epsilon
    for _ in range(num_iterations):
        logarithms = logarithms.log_softmax(dim=0).log_softmax(dim=1)
    return logarithms.exp()
