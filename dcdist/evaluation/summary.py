"""Several feature sets of the same images side by side, all with the same read-outs: what a run's summary prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dcdist.evaluation.knn import DEFAULT_NUM_NEIGHBORS, knn_accuracy
from dcdist.evaluation.linear import linear_accuracy
from dcdist.evaluation.readouts import PLAIN, WARD, WHITENED, label_free_readouts
from dcdist.evaluation.tables import aligned, figure
from dcdist.metrics.partition_scores import hungarian_accuracy, nmi

DEFAULT_NUM_SEEDS = 3


@dataclass(frozen=True)
class ReadoutScores:
    """Means over the seeds of k-means, and the smallest and largest NMI among them."""

    nmi: float
    nmi_min: float
    nmi_max: float
    accuracy: float  # best one-to-one matching of clusters to classes


@dataclass(frozen=True)
class SummaryRow:
    """The scores of one feature set. None: not measured."""

    name: str
    plain: ReadoutScores  # rows of length 1, k-means
    whitened: ReadoutScores  # principal components whitened, rows of length 1, k-means
    ward: ReadoutScores  # rows of length 1, many clusters of k-means merged by Ward's rule
    knn: float  # test images by the training images; without test images leave-one-out
    linear: float | None  # of the test images
    num_clusters: int
    num_seeds: int


def evaluate_features(
    name: str,
    features_train: torch.Tensor,
    labels_train: torch.Tensor,
    features_test: torch.Tensor | None,
    labels_test: torch.Tensor | None,
    num_classes: int,
    seed: int,
    whitening_dimensions: int,
    linear: bool = True,
    num_seeds: int = DEFAULT_NUM_SEEDS,
    progressed: Callable[[], None] = lambda: None,
) -> SummaryRow:
    """Scores a feature set. Clusters are those of the training images.

    Args:
        name: of the feature set, for the table.
        features_train: [N, D] float32.
        labels_train: [N] int, -1 without a label: such images are clustered, but not scored.
        features_test: [M, D] float32, or None.
        labels_test: [M] int, or None.
        num_classes: K of the clusterings.
        seed: of every random choice.
        whitening_dimensions: of the whitened read-out, as far as there are features.
        linear: whether to train the linear classifier, where there are test images.
        num_seeds: clusterings of each read-out, over which scores are averaged.
        progressed: called after each clustering and each classifier.

    Raises:
        UsageError: fewer images than clusters, or none with a label.
        RunError: the features are all equal or not finite.
    """
    labels = labels_train.numpy()
    readouts = label_free_readouts(features_train, num_classes, whitening_dimensions)

    def score(name: str) -> ReadoutScores:
        partitions = []
        for number in range(num_seeds):
            partitions.append(readouts[name](seed + number).assignments.numpy())
            progressed()
        nmis = [nmi(partition, labels) for partition in partitions]
        accuracies = [hungarian_accuracy(partition, labels) for partition in partitions]
        return ReadoutScores(statistics.fmean(nmis), min(nmis), max(nmis), statistics.fmean(accuracies))

    num_voters = int((labels_train >= 0).sum()) - (features_test is None)
    knn = knn_accuracy(
        features_train,
        labels_train,
        features_test,
        labels_test,
        num_neighbors=max(1, min(DEFAULT_NUM_NEIGHBORS, num_voters)),
    )
    progressed()
    linear_top1 = None
    if linear and features_test is not None and labels_test is not None:
        linear_top1 = linear_accuracy(features_train, labels_train, features_test, labels_test, seed).top1
        progressed()
    return SummaryRow(
        name=name,
        plain=score(PLAIN),
        whitened=score(WHITENED),
        ward=score(WARD),
        knn=knn.top1,
        linear=linear_top1,
        num_clusters=num_classes,
        num_seeds=num_seeds,
    )


def summary_dict(rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """The rows as JSON values, for RUN/evaluations/summary-NNNN.json."""
    return {"kind": "summary", "rows": [asdict(row) for row in rows]}


def render_summary(rows: Sequence[SummaryRow]) -> str:
    """The rows as an aligned table of plain text, with a line that says how they were measured."""
    header = ["", "NMI", "ACC", "NMI white", "ACC white", "NMI Ward", "ACC Ward", "kNN", "linear"]
    lines = aligned(header, [[row.name, *map(figure, _figures(row))] for row in rows])
    measured = (
        f"{rows[0].num_clusters} clusters; NMI and ACC are means over {rows[0].num_seeds} seeds of k-means. "
        "Labels serve these scores alone."
    )
    return "\n".join([*lines, measured])


def _figures(row: SummaryRow) -> list[float | None]:
    readouts = (row.plain, row.whitened, row.ward)
    return [*(figure for scores in readouts for figure in (scores.nmi, scores.accuracy)), row.knn, row.linear]
