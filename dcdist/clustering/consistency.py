"""The two terms of SCAN's loss (Van Gansbeke et al., ECCV 2020, equation 2), of probabilities over classes.

Shapes: B pairs of a row and its neighbour, H heads, C classes.
"""

from __future__ import annotations

import math

import torch


def scan_terms(anchors: torch.Tensor, neighbors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each head, from logits [B, H, C].

    Returns:
        consistency [H], the mean of -log <p, p_neighbor>; entropy [H] of the anchors' mean assignment.
    """
    # Classes before heads: of few classes, torch's softmax over the last axis takes 4 to 6 times as long.
    log_anchors, log_neighbors = (logits.transpose(1, 2).log_softmax(1) for logits in (anchors, neighbors))
    consistency = -(log_anchors + log_neighbors).logsumexp(1).mean(0)
    # By logarithms: the derivative of p log p at p = 0 would be infinite.
    log_mean = log_anchors.logsumexp(0) - math.log(len(anchors))
    return consistency, -(log_mean.exp() * log_mean).sum(0)
