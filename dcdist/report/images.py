"""The clusters that the report shows: their typical and least typical images, and how they match the classes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdist.metrics.contingency import contingency
from dcdist.report.blocks import Block, Gallery, HeatMap, Sentence, Thumbnail
from dcdist.report.choice import ChosenCluster
from dcdist.report.clusterings import Assignments

MOST_ROWS = 30  # clusters of the heat map
MOST_COLUMNS = 24  # classes
_NAMED_CLASSES = 3  # of a cluster, in words


def class_name(label: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its number where it has none."""
    return str(names[label]) if names is not None and 0 <= label < len(names) else f"class {label}"


def galleries(
    chosen: Sequence[ChosenCluster],
    thumbnails: Mapping[int, bytes | None],
    labels: NDArray[np.int64] | None,
    names: Sequence[str] | None,
    keys: Mapping[int, str],
) -> tuple[Block, ...]:
    """One for each cluster of which there are pictures."""
    blocks: list[Block] = []
    for one in chosen:
        majority = one.classes[0][0] if one.classes else None
        rows = []
        for heading, sample_ids in (("most typical", one.typical), ("least typical", one.least_typical)):
            pictures = []
            for sample_id in sample_ids:
                data = thumbnails.get(sample_id)
                if data is None:
                    continue
                label = -1 if labels is None else int(labels[sample_id])
                described = keys.get(sample_id, f"image {sample_id}")
                if label >= 0:
                    described = f"{class_name(label, names)}: {described}"
                uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
                pictures.append(Thumbnail(uri, described, label >= 0 and label != majority))
            if pictures:
                rows.append((heading, tuple(pictures)))
        if rows:
            title = f"Cluster {one.cluster}" + (f": {' and '.join(one.roles)}" if one.roles else "")
            blocks.append(Gallery(title, _classes_in_words(one, names), tuple(rows)))
    return tuple(blocks)


def _classes_in_words(one: ChosenCluster, names: Sequence[str] | None) -> str:
    words = f"{one.size:,} image{'s' * (one.size != 1)}"
    labelled = sum(count for _, count in one.classes)
    if not labelled:
        return words
    named = [f"{class_name(label, names)} ({count / labelled:.0%})" for label, count in one.classes[:_NAMED_CLASSES]]
    others = len(one.classes) - len(named)
    if others > 0:
        named.append(f"{others} other class{'es' * (others != 1)}")
    return f"{words}: {', '.join(named)}"


def class_map(
    assignments: Assignments, labels: NDArray[np.int64], names: Sequence[str] | None, which: str
) -> tuple[Block, ...]:
    """Cluster x class: the largest clusters, sorted by their most frequent class; the classes that they hold most of.

    Args:
        assignments: of N images.
        labels: [N], -1 without one.
        names: of the classes.
        which: clustering this is, in words.
    """
    table = contingency(assignments.clusters, labels)
    if not table.num_samples:
        return (Sentence("No image has both a cluster and a label."),)
    num_clusters = int((table.row_sizes > 0).sum())
    rows = np.argsort(-table.row_sizes, kind="stable")[: min(MOST_ROWS, num_clusters)]
    num_classes = int((table.column_sizes > 0).sum())
    in_rows = np.isin(table.rows, rows)
    frequency = np.bincount(table.columns[in_rows], table.counts[in_rows], len(table.column_sizes))
    columns = np.sort(np.argsort(-frequency, kind="stable")[: min(MOST_COLUMNS, int((frequency > 0).sum()))])
    counts = np.zeros((len(table.row_sizes), len(columns)), np.int64)
    place = np.full(len(table.column_sizes), -1)
    place[columns] = np.arange(len(columns))
    shown = place[table.columns] >= 0
    counts[table.rows[shown], place[table.columns[shown]]] = table.counts[shown]
    counts, totals = counts[rows], table.row_sizes[rows].astype(np.int64)
    share = counts.max(axis=1) / totals
    order = np.lexsort((-share, counts.argmax(axis=1)))
    caption = f"Images of {which}. The colour is a class's share of the cluster's labelled images."
    if num_clusters > len(rows):
        caption += f" The {len(rows)} largest of {num_clusters:,} clusters."
    if num_classes > len(columns):
        caption += f" The {len(columns)} classes, of {num_classes:,}, that are most frequent in them."
    return (
        HeatMap(
            "Images by cluster and class",
            caption,
            counts[order],
            totals[order],
            tuple(str(cluster) for cluster in rows[order]),
            tuple(class_name(int(label), names) for label in columns),
            "cluster",
            "class",
        ),
    )


def label_names(reports: Sequence[Mapping[str, Any]], otherwise: Sequence[str] | None) -> list[str] | None:
    """Names of the classes: from the newest evaluation of the run's own data that has them, else as given."""
    for report in reversed(reports):
        data, names = report.get("data"), report.get("label_names")
        if isinstance(names, list) and names and isinstance(data, dict) and data.get("of_the_run"):
            return [str(name) for name in names]
    return list(otherwise) if otherwise else None
