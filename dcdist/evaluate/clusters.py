"""Clusters against classes, as `dcdist evaluate clusters` reports them: the run's own and those of shared read-outs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dcdist.evaluate.kinds import Kind, mean_and_deviation, spread
from dcdist.evaluate.measured import FinalClusters, Measured
from dcdist.evaluate.report import Report
from dcdist.evaluate.subject import Subject
from dcdist.evaluation.clusters import SCORES, Partition, describe_clusters, render_clusters
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
_WITH_DEVIATION = ("accuracy", "by_train_naming")
_HELDOUT_SCORES = ("nmi", "by_train_naming", "by_best_naming")


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
    wanted = {"train": SCORES, "heldout": _HELDOUT_SCORES}
    return {
        part: {name: mean_and_deviation([one[part][name] for one in described]) for name in names}
        for part, names in wanted.items()
        if part in described[0]
    }


def _render(report: Report) -> list[str]:
    lines: list[str] = []
    rows = []
    for row in report["rows"]:
        for name in _TITLES:
            if name in row:
                rows.append([f"{row['name']}, {_TITLES[name]}", *_cells(row[name])])
        if FINAL in row:
            final = row[FINAL]["seeds"][0]
            lines += [render_clusters(final, report["label_names"]), *_sizes(final), ""]
    header = ["clusters", "K", "NMI", "AMI", "ARI", "ACC", "purity"]
    header += ["held-out NMI", "held-out ACC", "best"]
    if not lines and any(row["name"] == TRAINED for row in report["rows"]):
        lines = [f"the run has no final clustering yet: stage {report['stage']} has not ended", ""]
    seeds = len(report["seeds"])
    note = (
        f"{report['num_classes']} clusters of the shared read-outs, over {seeds} seed{'s' * (seeds != 1)}; ACC by the "
        "best one-to-one matching of clusters and classes"
    )
    if rows and rows[0][-1] != "-":
        note += "\nheld-out ACC: clusters named by the matching on training images; best: by the one on held-out images"
    return [*lines, *aligned(header, rows), note]


def _cells(readout: Mapping[str, Any]) -> list[str]:
    scores = readout["scores"]
    train, heldout = scores["train"], scores.get("heldout", {})
    return [
        str(readout["seeds"][0]["num_clusters"]),
        *(_cell(name, train) for name in ("nmi", "ami", "ari", "accuracy", "purity")),
        *(_cell(name, heldout) for name in _HELDOUT_SCORES),
    ]


def _cell(name: str, scores: Mapping[str, Any]) -> str:
    """Deviations of the accuracies alone: a line is to fit a terminal."""
    summary = scores.get(name)
    return spread(summary) if name in _WITH_DEVIATION or summary is None else figure(summary["mean"])


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
)
