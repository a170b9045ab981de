"""Clusters against classes, as `dcdist evaluate clusters` reports them: the run's own and those of shared read-outs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dcdist.evaluate.kinds import Kind, mean_and_deviation, spread
from dcdist.evaluate.measured import FinalClusters, Measured
from dcdist.evaluate.report import Report
from dcdist.evaluate.subject import Subject
from dcdist.evaluation import published
from dcdist.evaluation.clusters import Partition, describe_clusters, render_clusters, render_confusion
from dcdist.evaluation.feature_sets import TRAINED
from dcdist.evaluation.readouts import NEIGHBORS, PLAIN, WARD, WHITENED, label_free_readouts
from dcdist.evaluation.tables import aligned, figure

FINAL = "final"
_TITLES = {
    FINAL: "the run's own",
    PLAIN: "k-means",
    WHITENED: "whitened, k-means",
    WARD: "Ward",
    NEIGHBORS: "whitened, neighbours",
}
_PARTS = {"train": "training images", "heldout": "held-out images"}
_COLUMNS = {
    "train": {"nmi": "NMI", "ami": "AMI", "ari": "ARI", "accuracy": "ACC", "purity": "purity"},
    "heldout": {
        "nmi": "NMI",
        "ami": "AMI",
        "ari": "ARI",
        "by_train_naming": "ACC",
        "by_best_naming": "best",
        "purity": "purity",
    },
}


def _measure(measured: Measured, subject: Subject) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if measured.final is not None:
        row[FINAL] = _describe_final(measured.final)
    train_features, train_labels = measured.train
    readouts = label_free_readouts(train_features, subject.num_classes, subject.whitening_dimensions)
    for name, fit in readouts.items():
        described = []
        for seed in subject.options.seeds:
            fitted = fit(seed)
            heldout = None
            if measured.heldout is not None:
                features, labels = measured.heldout
                heldout = Partition(fitted.assign(features), labels)
            described.append(
                describe_clusters(subject.num_classes, Partition(fitted.assignments, train_labels), heldout)
            )
        row[name] = {"scores": _over_seeds(described), "seeds": described}
    return row


def _describe_final(final: FinalClusters) -> dict[str, Any]:
    described = describe_clusters(final.num_clusters, final.train, final.heldout)
    described["agreement_with_run"] = final.agreement_with_run
    return {"scores": _over_seeds([described]), "seeds": [described]}


def _over_seeds(described: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations of the scores on training and held-out images."""
    return {
        part: {name: mean_and_deviation([one[part][name] for one in described]) for name in names}
        for part, names in _COLUMNS.items()
        if part in described[0]
    }


def _render(report: Report) -> list[str]:
    lines: list[str] = []
    for row in report["rows"]:
        if FINAL in row:
            final = row[FINAL]["seeds"][0]
            lines += [render_clusters(final, report["label_names"]), *_sizes(final), ""]
            lines += [*render_confusion(final, report["label_names"]), ""]
    if not lines and any(row["name"] == TRAINED for row in report["rows"]):
        lines = [f"the run has no final clustering yet: stage {report['stage']} has not ended", ""]
    for part, columns in _COLUMNS.items():
        rows = [
            [f"{row['name']}, {_TITLES[name]}", str(row[name]["seeds"][0]["num_clusters"]), *_cells(row, name, part)]
            for row in report["rows"]
            for name in _TITLES
            if name in row and part in row[name]["scores"]
        ]
        for row in report["published"]:
            if row["part"] == part and rows:
                scores = [figure(row.get(name)) for name in columns]
                rows.append([published.title(row), str(row["num_classes"]), *scores])
        if rows:
            lines += [*aligned([_PARTS[part], "K", *columns.values()], rows), ""]
    seeds = len(report["seeds"])
    lines.append(
        f"{report['num_classes']} clusters of the shared read-outs, over {seeds} seed{'s' * (seeds != 1)}; ACC by the "
        "best one-to-one matching of clusters and classes"
    )
    if report["heldout"]:
        lines.append("held-out ACC by the matching on training images; best: by that on the held-out images themselves")
    return [*lines, *published.footnotes(report["published"])]


def _cells(row: Mapping[str, Any], readout: str, part: str) -> list[str]:
    scores = row[readout]["scores"][part]
    return [spread(scores[name]).replace(" ", "") for name in _COLUMNS[part]]  # a line is to fit a terminal


def _sizes(described: Mapping[str, Any]) -> list[str]:
    sizes = torch.tensor(described["train"]["sizes"])
    entropy = described["train"]["size_entropy_ratio"]
    lines = [
        f"sizes {int(sizes.min())} to {int(sizes.max())}, {int((sizes == 0).sum())} empty, their entropy is "
        f"{entropy:.3f} of the largest possible"
    ]
    agreement = described["agreement_with_run"]
    if agreement is not None and agreement < 1:
        lines.append(f"{1 - agreement:.4%} of the training images are in another cluster than the run itself found")
    return lines


CLUSTERS = Kind(
    measure=_measure,
    protocol=lambda subject: {
        "name": "clusters against classes",
        PLAIN: "rows of length 1, k-means",
        WHITENED: f"{subject.whitening_dimensions} principal components whitened, rows of length 1, k-means",
        WARD: "rows of length 1, many clusters of k-means merged by Ward's rule",
        NEIGHBORS: "whitened rows, linear classifiers trained to agree with the 20 nearest neighbours by SCAN's loss",
        "held-out images": "by the same transform and centroids, or classifier",
        "accuracy": "best one-to-one matching; by_train_naming: that of the training images",
    },
    render=_render,
    published=lambda subject: published.clusters(subject.num_classes),
)
