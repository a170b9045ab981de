"""Average precision and precision at k of a ranking with junk, as Oxford5k and its revision define them.

Shapes: N ranked images, P positives among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


def ranks_of_positives(scores: np.ndarray[Any, Any], positive: BoolArray, junk: BoolArray) -> IntArray:
    """Where the positives are once the junk is taken out of the ranking.

    Args:
        scores: [N], the best first; equal ones rank in the order of the images.
        positive: [N], to be found.
        junk: [N], as if they were not there.

    Returns:
        [P], ascending, from 0.
    """
    order = np.argsort(-scores, kind="stable")
    ranks = np.cumsum(~junk[order]) - 1
    return ranks[positive[order]]


def average_precision(ranks: IntArray, num_positives: int) -> float:
    """The area below precision over recall, by trapezoids (Philbin et al., CVPR 2007).

    The j-th positive (from 0) at rank r adds the mean of the precisions just before it, j / r (1 at the very top), and
    with it, (j + 1) / (r + 1); in equal shares of recall.

    Args:
        ranks: [P] of the positives that were ranked, ascending, from 0, without junk.
        num_positives: with those that were not ranked, which count as never found.
    """
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    with_it = (found + 1) / (ranks + 1)
    return float(((before + with_it) / 2).sum() / num_positives)


def precision_at(ranks: IntArray, k: int) -> float:
    """The share of positives among the first k, or, where fewer hold all of them, among these (Radenovic et al., 2018).

    Args:
        ranks: as in `average_precision`.
        k: at least 1.
    """
    if len(ranks) == 0:
        return 0.0
    looked_at = min(k, int(ranks[-1]) + 1)
    return float((ranks < looked_at).sum() / looked_at)
