"""Detections against annotated boxes by the rules of PASCAL VOC's development kit.

Shapes: d detections and g annotated objects of one class over all images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdist.evaluation.voc_average_precision import IGNORED, RIGHT, WRONG, area, eleven_points, ranking

MIN_OVERLAP = 0.5


@dataclass(frozen=True)
class Boxes:
    """Boxes of one class, each in an image."""

    image_ids: np.ndarray[Any, Any]  # [d] or [g] int64
    corners: np.ndarray[Any, Any]  # [d, 4] or [g, 4]: xmin, ymin, xmax, ymax, as in VocObjects


@dataclass(frozen=True)
class DetectionScore:
    """Average precision of one class; None where there is no object to find."""

    eleven_points: float | None
    area: float | None
    num_objects: int  # that are not difficult


def detection_score(
    detections: Boxes, scores: np.ndarray[Any, Any], objects: Boxes, difficult: np.ndarray[Any, Any]
) -> DetectionScore:
    """Average precision of one class, as the development kit's VOCevaldet finds it.

    From the highest score to the lowest (of equal ones the earlier first) a detection goes to the object of its image
    that it overlaps most, difficult ones included. It is right where the overlap is at least MIN_OVERLAP and the object
    was not found before, ignored where that object is difficult, and wrong in every other case: a second detection of
    an object is wrong.

    Args:
        detections: of all images.
        scores: [d] of the detections.
        objects: of all images.
        difficult: [g] bool; such objects need not be found.
    """
    num_objects = int((~difficult).sum())
    outcomes = _outcomes(detections, ranking(scores), objects, difficult)
    return DetectionScore(eleven_points(outcomes, num_objects), area(outcomes, num_objects), num_objects)


def overlaps(box: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Intersection over union of a box [4] with others [g, 4]: [g].

    A box from 1 to 1 is one pixel wide, so sides are differences + 1, as in the development kit.
    """
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    intersection = np.clip(high - low + 1, 0, None).prod(1)
    union = (box[2:] - box[:2] + 1).prod() + (others[:, 2:] - others[:, :2] + 1).prod(1) - intersection
    return np.asarray(intersection / union)


def _outcomes(
    detections: Boxes, order: np.ndarray[Any, Any], objects: Boxes, difficult: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """int8 [d] of RIGHT, IGNORED and WRONG, in that order."""
    of_image: dict[int, np.ndarray[Any, Any]] = {
        image_id: np.flatnonzero(objects.image_ids == image_id) for image_id in np.unique(objects.image_ids).tolist()
    }
    found = np.zeros(len(difficult), bool)
    outcomes = np.full(len(order), WRONG, np.int8)
    for rank, detection in enumerate(order.tolist()):
        candidates = of_image.get(int(detections.image_ids[detection]))
        if candidates is None:
            continue
        shared = overlaps(detections.corners[detection], objects.corners[candidates])
        best = int(shared.argmax())
        if shared[best] < MIN_OVERLAP:
            continue
        chosen = candidates[best]
        if difficult[chosen]:
            outcomes[rank] = IGNORED
        elif not found[chosen]:
            outcomes[rank] = RIGHT
            found[chosen] = True
    return outcomes
