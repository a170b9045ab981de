"""Detections by the rules of VOC's development kit: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dcdist.evaluation.detection_scores import Boxes, DetectionScore, detection_score, overlaps

Box = tuple[float, float, float, float]
FAR: Box = (201.0, 201.0, 210.0, 210.0)
FIRST: Box = (1.0, 1.0, 10.0, 10.0)  # 100 pixels
SECOND: Box = (51.0, 51.0, 60.0, 60.0)


def score(detections: list[tuple[int, Box, float]], objects: list[tuple[int, Box, bool]]) -> DetectionScore:
    """Of detections (image, box, score) and objects (image, box, difficult)."""

    def boxes(rows: list[tuple[int, Box, float]] | list[tuple[int, Box, bool]]) -> Boxes:
        return Boxes(np.array([row[0] for row in rows], int), np.array([row[1] for row in rows], float).reshape(-1, 4))

    return detection_score(
        boxes(detections),
        np.array([row[2] for row in detections]),
        boxes(objects),
        np.array([o[2] for o in objects], bool),
    )


def test_sides_count_the_last_pixel() -> None:
    others = np.array([(1, 1, 10, 10), (1, 1, 10, 5), (10, 10, 19, 19), (11, 1, 20, 10), (1, 6, 10, 15)], float)
    # 10 x 5 of 100 pixels; the corner pixel of 199; nothing; 50 of 150.
    assert overlaps(np.array(FIRST), others).tolist() == pytest.approx([1.0, 0.5, 1 / 199, 0.0, 1 / 3])


def test_an_overlap_of_exactly_a_half_is_enough() -> None:
    assert score([(0, (1, 1, 10, 5), 1.0)], [(0, FIRST, False)]) == DetectionScore(1.0, 1.0, 1)
    assert score([(0, (1, 1, 10, 4), 1.0)], [(0, FIRST, False)]) == DetectionScore(0.0, 0.0, 1)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    found = score([(0, FIRST, 0.9), (0, FIRST, 0.8), (0, SECOND, 0.7)], [(0, FIRST, False), (0, SECOND, False)])
    # Right, wrong, right: precision 1 up to recall 1/2, 2/3 up to 1.
    assert found.area == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)
    assert found.eleven_points == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-12)


def test_a_detection_goes_to_the_object_it_overlaps_most_even_if_that_is_taken() -> None:
    """The kit does not look for the second best: what lies best on a found object is wrong."""
    objects = [(0, (1.0, 1.0, 10.0, 10.0), False), (0, (3.0, 1.0, 12.0, 10.0), False)]
    detections = [(0, (1.0, 1.0, 10.0, 10.0), 0.9), (0, (2.0, 1.0, 10.0, 10.0), 0.8)]  # both best on the first
    assert overlaps(np.array(detections[1][1]), np.array([o[1] for o in objects])).tolist() == pytest.approx(
        [0.9, 8 / 11]
    )
    found = score(detections, objects)
    assert (found.area, found.num_objects) == (0.5, 2)


def test_difficult_objects_need_not_be_found_and_finding_them_is_no_fault() -> None:
    objects = [(0, FIRST, True), (0, SECOND, False)]
    found = score([(0, FIRST, 0.9), (0, FIRST, 0.8), (0, SECOND, 0.7)], objects)
    assert found == DetectionScore(1.0, 1.0, 1), "however often"
    assert score([(0, SECOND, 0.7)], objects) == DetectionScore(1.0, 1.0, 1)
    assert score([(0, FAR, 0.8), (0, SECOND, 0.7)], objects) == DetectionScore(0.5, 0.5, 1)


def test_objects_belong_to_their_images() -> None:
    assert score([(1, FIRST, 0.9), (0, FIRST, 0.8)], [(0, FIRST, False)]) == DetectionScore(0.5, 0.5, 1)


def test_of_equal_scores_the_earlier_counts_first() -> None:
    objects = [(0, FIRST, False)]
    assert score([(0, FIRST, 0.5), (0, FAR, 0.5)], objects).area == 1.0
    assert score([(0, FAR, 0.5), (0, FIRST, 0.5)], objects).area == 0.5


def test_of_equal_overlaps_the_earlier_object_is_taken() -> None:
    """Two objects of one box, the first difficult: the detection is ignored, as in the kit."""
    assert score([(0, FIRST, 0.9)], [(0, FIRST, True), (0, FIRST, False)]) == DetectionScore(0.0, 0.0, 1)
    assert score([(0, FIRST, 0.9)], [(0, FIRST, False), (0, FIRST, True)]) == DetectionScore(1.0, 1.0, 1)


def test_without_objects_there_is_no_precision() -> None:
    assert score([(0, FIRST, 0.9)], []) == DetectionScore(None, None, 0)
    assert score([(0, FIRST, 0.9)], [(0, FIRST, True)]) == DetectionScore(None, None, 0)
    assert score([], [(0, FIRST, False)]) == DetectionScore(0.0, 0.0, 1)
