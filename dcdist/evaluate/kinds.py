"""Nearest neighbours and the linear classifier, as `dcdist evaluate` reports them; and what a kind of evaluation is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcdist.evaluate.measured import Measured
from dcdist.evaluate.report import Report
from dcdist.evaluate.subject import Subject
from dcdist.evaluation import published
from dcdist.evaluation.knn import DEFAULT_TEMPERATURE, knn_accuracies
from dcdist.evaluation.linear import PENALTIES, linear_accuracies
from dcdist.evaluation.tables import aligned, figure


@dataclass(frozen=True)
class Kind:
    """A kind of evaluation: how one network is measured, and how the report reads."""

    measure: Callable[[Measured, Subject], dict[str, Any]]  # a row of the report
    protocol: Callable[[Subject], dict[str, Any]]  # how it was measured
    render: Callable[[Report], list[str]]
    published: Callable[[Subject], list[dict[str, Any]]] = lambda subject: []  # noqa: ARG005
    needs_heldout: bool = False


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Over seeds; the deviation (of a sample, n - 1) is None for a single one."""
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def spread(summary: Mapping[str, float | None] | None) -> str:
    """What `mean_and_deviation` gave, for a table."""
    if summary is None:
        return "-"
    return figure(summary["mean"]) + ("" if summary["deviation"] is None else f" ± {summary['deviation']:.3f}")


def _measure_knn(measured: Measured, subject: Subject) -> dict[str, Any]:
    available = len(measured.train[1]) - (measured.heldout is None)
    wanted = subject.options.neighbors
    fitting = [k for k in wanted if k <= available] or wanted[:1]  # the error names how many there are
    features, labels = measured.heldout or (None, None)
    accuracies = knn_accuracies(*measured.train, features, labels, fitting)
    return {"top1": {str(found.num_neighbors): found.top1 for found in accuracies}}


def _render_knn(report: Report) -> list[str]:
    counts = list(report["rows"][0]["top1"])
    rows = [[row["name"], *(figure(row["top1"][k]) for k in counts)] for row in report["rows"]]
    rows += [
        [published.title(row), *(figure(row["top1"].get(k)) for k in counts)]
        for row in report["published"]
        if set(row["top1"]) & set(counts)
    ]
    how = "held-out images by the training images" if report["heldout"] else "each image by the others (leave-one-out)"
    note = f"top-1 of {how}; votes weigh exp(cosine similarity / {DEFAULT_TEMPERATURE})"
    notes = published.footnotes(report["published"])
    return [*aligned(["kNN", *(f"k={k}" for k in counts)], rows), note, *notes]


def _measure_linear(measured: Measured, subject: Subject) -> dict[str, Any]:
    assert measured.heldout is not None
    found = linear_accuracies(*measured.train, *measured.heldout, seeds=subject.options.seeds)
    top5 = [accuracy.top5 for accuracy in found if accuracy.top5 is not None]
    return {
        "top1": mean_and_deviation([accuracy.top1 for accuracy in found]),
        "top5": mean_and_deviation(top5) if top5 else None,
        "seeds": [{"top1": one.top1, "top5": one.top5, "penalty": one.penalty} for one in found],
    }


def _render_linear(report: Report) -> list[str]:
    rows = []
    for row in report["rows"]:
        penalties = sorted({seed["penalty"] for seed in row["seeds"]})
        rows.append([row["name"], spread(row["top1"]), spread(row["top5"]), ", ".join(f"{p:g}" for p in penalties)])
    seeds = len(report["seeds"])
    note = (
        "logistic regression on frozen features, of held-out images; the penalty is chosen on a fifth of the training "
        f"images, {seeds} such split{'s' * (seeds != 1)}"
    )
    return [*aligned(["linear classifier", "top-1", "top-5", "penalty"], rows), note]


KNN = Kind(
    measure=_measure_knn,
    protocol=lambda subject: {
        "name": "weighted vote of the nearest neighbours",
        "similarity": "cosine",
        "temperature": DEFAULT_TEMPERATURE,
        "neighbors": list(subject.options.neighbors),
    },
    render=_render_knn,
    published=lambda subject: published.knn(subject.run.config.model.name),
)

LINEAR = Kind(
    measure=_measure_linear,
    protocol=lambda subject: {  # noqa: ARG005
        "name": "logistic regression",
        "features": "the backbone's output, standardised by the training images",
        "optimizer": "L-BFGS",
        "penalties": list(PENALTIES),
        "penalty_chosen_on": "a fifth of the training images",
    },
    render=_render_linear,
    needs_heldout=True,
)
