"""Average precision by VOC's two rules: by hand, and from the definitions in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dcdist.evaluation.voc_average_precision import area, eleven_points, ranking


def by_definition(outcomes: list[int], num_positives: int) -> tuple[float, float]:
    """Both rules written down as the papers do: the highest precision at a recall of r or more, for each r."""
    points, found, counted = [], 0, 0
    for outcome in outcomes:
        found += outcome == 1
        counted += outcome != 0
        points.append((Fraction(found, num_positives), Fraction(found, max(counted, 1))))

    def precision(recall: Fraction) -> Fraction:
        return max((p for r, p in points if r >= recall), default=Fraction(0))

    eleven = sum(precision(Fraction(k, 10)) for k in range(11)) / 11
    # A step function of the recall, whose steps are at each further object.
    below = sum(precision(Fraction(k, num_positives)) for k in range(1, num_positives + 1)) / num_positives
    return float(eleven), float(below)


def test_by_hand() -> None:
    # Precision 1, 1/2, 2/3, 1/2 at the recalls 1/4, 1/4, 2/4, 2/4; half of the objects are never found.
    outcomes = np.array([1, -1, 1, -1])
    assert eleven_points(outcomes, 4) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11, abs=1e-12)
    assert area(outcomes, 4) == pytest.approx((1 + 2 / 3) / 4, abs=1e-12)


def test_precision_is_raised_to_that_of_a_higher_recall() -> None:
    outcomes = np.array([-1, 1, 1, 1])  # precisions 0, 1/2, 2/3, 3/4
    assert eleven_points(outcomes, 3) == pytest.approx(3 / 4, abs=1e-12)
    assert area(outcomes, 3) == pytest.approx(3 / 4, abs=1e-12)


def test_ignored_answers_change_nothing() -> None:
    with_ignored = np.array([0, 1, 0, 0, -1, 1, 0])
    without = np.array([1, -1, 1])
    assert eleven_points(with_ignored, 3) == eleven_points(without, 3)
    assert area(with_ignored, 3) == area(without, 3)


def test_all_none_and_nothing_to_find() -> None:
    assert (eleven_points(np.array([1, 1]), 2), area(np.array([1, 1]), 2)) == (1.0, 1.0)
    assert (eleven_points(np.array([-1, 0]), 2), area(np.array([-1, 0]), 2)) == (0.0, 0.0)
    assert (eleven_points(np.array([], int), 2), area(np.array([], int), 2)) == (0.0, 0.0)
    assert (eleven_points(np.array([-1]), 0), area(np.array([-1]), 0)) == (None, None)


@pytest.mark.parametrize("share", [3, 6, 7])
def test_recalls_are_compared_exactly(share: int) -> None:
    """3 of 10 reach the recall 0.3, of which floating point makes 0.30000000000000004."""
    outcomes = np.ones(share, int)
    assert eleven_points(outcomes, 10) == pytest.approx((share + 1) / 11, abs=1e-12)


def test_random_outcomes_agree_with_the_definition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        outcomes = generator.choice([-1, 0, 1], size=30)
        num_positives = int((outcomes == 1).sum() + generator.integers(1, 5))
        eleven, below = by_definition(outcomes.tolist(), num_positives)
        assert eleven_points(outcomes, num_positives) == pytest.approx(eleven, abs=1e-12)
        assert area(outcomes, num_positives) == pytest.approx(below, abs=1e-12)


def test_equal_scores_stay_in_order() -> None:
    assert ranking(np.array([0.5, 0.9, 0.5, 0.9, 0.1])).tolist() == [1, 3, 0, 2, 4]
