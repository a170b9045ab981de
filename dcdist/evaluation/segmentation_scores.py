"""Intersection over union of the pixels of each class (Everingham et al., IJCV 2015, section 3.3).

Shapes: R classes, the background among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dcdist.errors import RunError


class Confusion:
    """Counts of pixels by true and by predicted class, summed over images of any size."""

    def __init__(self, num_classes: int, ignored: int) -> None:
        self.counts = np.zeros((num_classes, num_classes), np.int64)  # [R, R]: true, predicted
        self._ignored = ignored

    def add(self, truth: np.ndarray[Any, Any], prediction: np.ndarray[Any, Any]) -> None:
        """Counts one image; both are integers [H, W], and pixels whose truth is the ignored value do not count."""
        counted = truth != self._ignored
        size = len(self.counts)
        cells = truth[counted].astype(np.int64) * size + prediction[counted]
        self.counts += np.bincount(cells, minlength=size * size).reshape(size, size)

    def intersections_over_unions(self) -> list[float | None]:
        """Of each class: pixels that are it and were called it, over those that are it or were called it.

        None where no pixel is it and none was called it; 0 where none is it and some were called it.
        """
        right = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - right
        return [float(r / u) if u else None for r, u in zip(right.tolist(), union.tolist(), strict=True)]

    def mean(self) -> float:
        """Over the classes that have a value. Raises RunError where no pixel was counted."""
        known = [value for value in self.intersections_over_unions() if value is not None]
        if not known:
            raise RunError("no pixel has a class: every pixel of the masks is marked as ignored")
        return float(np.mean(known))

    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that were called what they are."""
        return float(self.counts.diagonal().sum() / self.counts.sum())
