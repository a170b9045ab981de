"""Average precision by the two rules of PASCAL VOC, of classification and of detection alike.

The eleven-point rule is that of VOC 2007 (Everingham et al., IJCV 2010, equations 1 and 2), the area rule that of VOC
2010 and later. Shapes: n ranked answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RIGHT, IGNORED, WRONG = 1, 0, -1  # outcome of an answer; ignored ones count neither for nor against


def ranking(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int64 [n]: answers from the highest score to the lowest; of equal ones the earlier first."""
    return np.argsort(-scores, kind="stable")


def eleven_points(outcomes: np.ndarray[Any, Any], num_positives: int) -> float | None:
    """The mean over the recalls 0, 0.1, ..., 1 of the highest precision at that recall or a greater one.

    Recalls are compared as whole numbers: 3 of 10 reach 0.3 (in floating point 3 * 0.1 > 3 / 10).

    Args:
        outcomes: [n] of RIGHT, IGNORED and WRONG, in the order of `ranking`.
        num_positives: how many there are to find.

    Returns:
        0 to 1; None where there is nothing to find.
    """
    if num_positives == 0:
        return None
    found, precision = _found_and_precision(outcomes)
    highest = [precision[10 * found >= point * num_positives].max(initial=0.0) for point in range(11)]
    return float(np.mean(highest))


def area(outcomes: np.ndarray[Any, Any], num_positives: int) -> float | None:
    """The area below the precision over the recall, each precision raised to the highest at a greater recall.

    Arguments and return value as those of `eleven_points`.
    """
    if num_positives == 0:
        return None
    found, precision = _found_and_precision(outcomes)
    raised = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(found, prepend=0)
    return float((raised * gained).sum() / num_positives)


def _found_and_precision(outcomes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Positives found after each answer, and the share of right ones among those that count (0 where none does)."""
    found = np.cumsum(outcomes == RIGHT)
    counted = np.cumsum(outcomes != IGNORED)
    return found, found / np.maximum(counted, 1)
