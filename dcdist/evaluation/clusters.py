"""Clusters scored against labels: agreement, balance, and the accuracy of held-out images by the clusters' names.

Shapes: N training images, M held-out ones, K clusters, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcdist.errors import UsageError
from dcdist.evaluation.tables import aligned, figure
from dcdist.metrics.cluster_metrics import cluster_sizes, size_entropy_ratio
from dcdist.metrics.contingency import contingency
from dcdist.metrics.partition_scores import (
    accuracy_of_names,
    ami,
    ari,
    entropy,
    hungarian_accuracy,
    majority_purity,
    name_clusters,
    nmi,
)

LARGEST_TABLE = 20  # clusters; of more a table says nothing to a reader
NO_NAME = -1  # of a cluster that no class is left for
SCORES = ("nmi", "ari", "ami", "accuracy", "purity")


@dataclass(frozen=True)
class Partition:
    """Some images' clusters beside their classes."""

    assignments: torch.Tensor  # [N] int32, -1 where an image did not decode
    labels: torch.Tensor  # [N] int, -1 without a label


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of clusters with classes; rows without a label are left out. `table` is [K, C], counts."""

    nmi: float
    ari: float
    ami: float
    accuracy: float  # best one-to-one matching of clusters to classes
    purity: float  # every cluster named by its majority
    table: NDArray[np.int64]


def cluster_scores(assignments: torch.Tensor, labels: torch.Tensor) -> ClusterScores:
    """Scores of [N] cluster ids against [N] classes.

    Raises:
        UsageError: no row has a label.
    """
    clusters, classes = assignments.numpy(), labels.numpy()
    if not ((clusters >= 0) & (classes >= 0)).any():
        raise UsageError("clusters cannot be scored: no image has a label and a cluster")
    return ClusterScores(
        nmi=nmi(clusters, classes),
        ari=ari(clusters, classes),
        ami=ami(clusters, classes),
        accuracy=hungarian_accuracy(clusters, classes),
        purity=majority_purity(clusters, classes),
        table=contingency(clusters, classes).dense(),
    )


def describe_clusters(num_clusters: int, train: Partition, heldout: Partition | None = None) -> dict[str, Any]:
    """A clustering's scores, sizes and tables as JSON values.

    Args:
        num_clusters: K, those included that are empty.
        train: the images that were clustered.
        heldout: other images in the same clusters, or None.

    Raises:
        UsageError: no image has a label and a cluster.
    """
    num_classes = 1 + max(int(partition.labels.max()) for partition in (train, heldout) if partition is not None)
    described: dict[str, Any] = {"num_clusters": num_clusters, "train": _describe(train, num_clusters)}
    described["table"] = _table(train, num_clusters, num_classes)
    names = name_clusters(train.assignments.numpy(), train.labels.numpy())
    names = np.pad(names, (0, num_clusters - len(names)), constant_values=NO_NAME)
    described["names"] = names.tolist()
    described["confusion"] = _confusion(train, names, num_classes)
    if heldout is not None:
        described["heldout_confusion"] = _confusion(heldout, names, num_classes)
        scores = _describe(heldout, num_clusters)
        described["heldout"] = {
            "by_train_naming": accuracy_of_names(heldout.assignments.numpy(), heldout.labels.numpy(), names),
            "by_best_naming": scores["accuracy"],
            **scores,
        }
        described["heldout_table"] = _table(heldout, num_clusters, num_classes)
    return described


def _describe(partition: Partition, num_clusters: int) -> dict[str, Any]:
    scores = cluster_scores(partition.assignments, partition.labels)
    sizes = cluster_sizes(partition.assignments.numpy(), num_clusters)
    class_entropies = [entropy(row) for row in scores.table]
    return {
        **{name: getattr(scores, name) for name in SCORES},
        "sizes": sizes.tolist(),
        "size_entropy_ratio": size_entropy_ratio(sizes),
        "class_entropies": class_entropies + [0.0] * (num_clusters - len(class_entropies)),  # nats, of each cluster
    }


def _table(partition: Partition, num_clusters: int, num_classes: int) -> list[list[int]] | None:
    """Counts [K, C]; None of more than 20 clusters."""
    if num_clusters > LARGEST_TABLE:
        return None
    table = np.zeros((num_clusters, num_classes), np.int64)
    found = contingency(partition.assignments.numpy(), partition.labels.numpy())
    table[found.rows, found.columns] = found.counts
    rows: list[list[int]] = table.tolist()
    return rows


def _confusion(partition: Partition, names: NDArray[np.int64], num_classes: int) -> list[list[int]] | None:
    """Counts [C, C + 1]: images of a class by the name of their cluster, the last column for clusters without one.

    Args:
        partition: some images.
        names: [K], the class of each cluster or NO_NAME.
        num_classes: C; of more than 20 there is no table.
    """
    if num_classes > LARGEST_TABLE:
        return None
    clusters, classes = partition.assignments.numpy(), partition.labels.numpy()
    known = (clusters >= 0) & (classes >= 0)
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    np.add.at(confusion, (classes[known], names[clusters[known]]), 1)  # NO_NAME, -1, is the last column
    rows: list[list[int]] = confusion.tolist()
    return rows


def render_confusion(clusters: Mapping[str, Any], label_names: list[str] | None) -> list[str]:
    """Lines of the confusion of held-out images (else of training images); none of more than 20 classes."""
    part = "held-out" if "heldout" in clusters else "training"
    table = clusters["heldout_confusion" if part == "held-out" else "confusion"]
    if table is None:
        return []
    names = _names(label_names, len(table))
    rows = [[name, *map(str, row)] for name, row in zip(names, table, strict=True)]
    return [f"class x name of its cluster on the {part} images", *aligned(["", *names, "no name"], rows)]


def _names(label_names: list[str] | None, num_classes: int) -> list[str]:
    return [label_names[index] if label_names else str(index) for index in range(num_classes)]


def render_clusters(clusters: Mapping[str, Any], label_names: list[str] | None) -> str:
    """What `describe_clusters` gave, in words and, of few clusters, as a table of the training images."""
    lines = [f"final clusters: {clusters['num_clusters']}, cluster x class on the training images"]
    table, train = clusters["table"], clusters["train"]
    if table is not None:
        names = _names(label_names, len(table[0]))
        rows = [
            [
                str(number),
                *map(str, counts),
                figure(train["class_entropies"][number]),
                names[clusters["names"][number]] if clusters["names"][number] != NO_NAME else "-",
            ]
            for number, counts in enumerate(table)
        ]
        lines += aligned(["", *names, "entropy", "name"], rows)
    lines.append(
        f"majority purity on training images {train['purity']:.3f}, "
        f"accuracy {train['accuracy']:.3f}, NMI {train['nmi']:.3f}"
    )
    if "heldout" in clusters:
        heldout = clusters["heldout"]
        lines.append(
            f"accuracy on held-out images {heldout['by_train_naming']:.3f} (clusters named on the training images), "
            f"{heldout['by_best_naming']:.3f} (better of the namings on the held-out images)"
        )
    return "\n".join(lines)
