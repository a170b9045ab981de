"""Curves out of a run's records, over the epochs that a stage has trained (0 where it begins).

Shapes: P points.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dcdist.report.blocks import FloatArray
from dcdist.report.history import History, number_in, numbers_in

Curve = tuple[FloatArray, FloatArray]  # x [P] epochs trained, y [P]

MOST_POINTS = 400  # of a curve: more cannot be told apart


def epoch_curve(history: History, stage: str, name: str) -> Curve:
    """A figure of the epoch records; what an epoch trained stands at its end."""
    points = [(record["epoch"] + 1, number_in(record, name)) for record in history.of_kind("epoch", stage)]
    return _curve(points)


def clustering_curve(history: History, stage: str, name: str, head: int = 0) -> Curve:
    """A figure of the clustering records of a head; a clustering stands where its epoch begins."""
    records = history.of_kind("clustering", stage)
    return _curve((record["epoch"], number_in(record, name)) for record in records if record["head"] == head)


def heads(history: History, stage: str) -> list[int]:
    """Numbers of the heads that have clusterings."""
    return sorted({record["head"] for record in history.of_kind("clustering", stage)})


def step_curve(history: History, stage: str, name: str) -> Curve:
    """A figure of the step records, at fractions of epochs; means of neighbouring ones where there are many."""
    records = list(history.of_kind("step", stage))
    positions = _positions(history, stage, [record["step"] for record in records])
    if positions is None:
        return _curve([])
    return _thinned(_curve((float(at), number_in(record, name)) for at, record in zip(positions, records, strict=True)))


def epoch_means(history: History, stage: str, name: str) -> dict[str, Curve]:
    """Of a mapping in the step records ("losses", "figures"): a curve a name, of means over each epoch's records."""
    sums: dict[str, dict[int, list[float]]] = {}
    for record in history.of_kind("step", stage):
        for key, value in numbers_in(record, name).items():
            sums.setdefault(key, {}).setdefault(record["epoch"] + 1, []).append(value)
    return {
        key: _curve((epoch, float(np.mean(values))) for epoch, values in epochs.items())
        for key, epochs in sorted(sums.items())
    }


def _positions(history: History, stage: str, steps: list[int]) -> FloatArray | None:
    """Epochs trained at each of these steps of the run; None where nothing says how long an epoch is."""
    ends = dict(sorted((record["step"], record["epoch"] + 1) for record in history.of_kind("epoch", stage)))
    begin = _beginning(history, stage)
    if begin is not None:
        ends = {begin[0]: 0, **ends}
    if len(ends) >= 2:
        (before, earlier), (last, latest) = list(ends.items())[-2:]
        steps_per_epoch = (last - before) / max(latest - earlier, 1)
    elif begin is not None and begin[1] > 0:
        steps_per_epoch = begin[1]
    else:
        return None
    known, epochs = np.array(list(ends), float), np.array(list(ends.values()), float)
    at = np.array(steps, float)
    beyond = np.clip((at - known[-1]) / max(steps_per_epoch, 1.0), 0.0, 1.0)
    below = np.clip((known[0] - at) / max(steps_per_epoch, 1.0), 0.0, epochs[0])
    positions: FloatArray = np.interp(at, known, epochs) + beyond - below
    return positions


def _beginning(history: History, stage: str) -> tuple[int, float] | None:
    """The step at which the stage began, and how many steps its epochs were expected to have."""
    for record in history.of_kind("event", stage):
        if record.get("event") == "stage_begin" and record["epoch"] == 0:
            until, epochs = number_in(record, "until_step"), number_in(record, "num_epochs")
            expected = (until - record["step"]) / epochs if until and epochs else 0.0
            return record["step"], expected
    return None


def _curve(points: Iterable[tuple[float, float | None]]) -> Curve:
    known = sorted((x, y) for x, y in points if y is not None)
    array = np.array(known, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _thinned(curve: Curve) -> Curve:
    x, y = curve
    if len(x) <= MOST_POINTS:
        return curve
    groups = np.arange(len(x)) * MOST_POINTS // len(x)
    counts = np.bincount(groups)
    return np.bincount(groups, x) / counts, np.bincount(groups, y) / counts
