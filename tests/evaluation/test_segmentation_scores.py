"""Intersection over union: by hand, and as scikit-learn has it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from dcdist.errors import RunError
from dcdist.evaluation.segmentation_scores import Confusion


def test_by_hand() -> None:
    confusion = Confusion(5, ignored=255)
    confusion.add(np.array([[0, 0, 1], [1, 1, 255]]), np.array([[0, 1, 1], [1, 3, 2]]))
    assert confusion.counts.tolist() == [[1, 1, 0, 0, 0], [0, 2, 0, 1, 0], [0] * 5, [0] * 5, [0] * 5]
    # Class 2 was called on an ignored pixel alone, 4 nowhere: no value. Class 3 was called but is not there: 0.
    assert confusion.intersections_over_unions() == [1 / 2, 2 / 4, None, 0.0, None]
    assert confusion.mean() == pytest.approx(1 / 3, abs=1e-12)
    assert confusion.pixel_accuracy() == pytest.approx(3 / 5, abs=1e-12)


def test_sums_over_images_of_several_sizes_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    confusion = Confusion(21, ignored=255)
    truths, predictions = [], []
    for shape in ((30, 40), (25, 60), (50, 20)):
        truth = generator.choice([*range(18), 255], size=shape).astype(np.uint8)  # 18 to 20 are nowhere
        noise = generator.integers(0, 20, size=shape)
        prediction = np.where(generator.random(shape) < 0.6, np.minimum(truth, 19), noise)
        confusion.add(truth, prediction)
        truths.append(truth[truth != 255])
        predictions.append(prediction[truth != 255])
    true, called = np.concatenate(truths), np.concatenate(predictions)
    assert confusion.counts.tolist() == confusion_matrix(true, called, labels=range(21)).tolist()
    ious = confusion.intersections_over_unions()
    assert ious[20] is None
    assert ious[18] == 0.0
    theirs = jaccard_score(true, called, labels=range(20), average=None)
    assert ious[:20] == pytest.approx(theirs.tolist(), abs=1e-6)
    assert confusion.mean() == pytest.approx(theirs.mean(), abs=1e-6)
    assert confusion.pixel_accuracy() == pytest.approx(accuracy_score(true, called), abs=1e-6)


def test_a_large_class_does_not_overflow() -> None:
    confusion = Confusion(2, ignored=255)
    truth = np.ones((3000, 3000), np.uint8)
    for _ in range(2):
        confusion.add(truth, truth)
    assert confusion.counts[1, 1] == 18_000_000


def test_masks_without_a_class_are_an_error() -> None:
    confusion = Confusion(2, ignored=255)
    confusion.add(np.full((2, 2), 255), np.zeros((2, 2), int))
    with pytest.raises(RunError, match="no pixel has a class"):
        confusion.mean()
