"""Which clusters the report shows images of, and which images: the most typical and the least typical ones.

Shapes: N samples, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcdist.metrics.contingency import contingency
from dcdist.report.clusterings import Assignments

IntArray = NDArray[np.int64]

IMAGES_EACH = 12  # at either end of a cluster
ALL_SHOWN = 4  # clusters, up to which no choice is made
FEW_CLUSTERS = 12  # below it one cluster a role is shown, else two
LEAST_LABELLED = 10  # images with labels that a cluster needs to be the purest: one image alone is always pure


@dataclass(frozen=True)
class ChosenCluster:
    """A cluster and its extreme images."""

    cluster: int
    roles: tuple[str, ...]  # of "largest", "smallest", "purest", "most mixed"
    size: int
    purity: float | None  # share of the most frequent class; None without labels
    classes: tuple[tuple[int, int], ...]  # (label, images of it), the most frequent first
    typical: tuple[int, ...]  # sample_ids, the smallest distance first
    least_typical: tuple[int, ...]  # the largest distance first; none of them is among the typical ones


def choose_clusters(assignments: Assignments, labels: IntArray | None) -> tuple[ChosenCluster, ...]:
    """The largest, smallest, and where there are labels purest and most mixed clusters; empty ones are left out.

    Of very few clusters all are shown. A cluster is named once, with all of its roles. Of equals the larger cluster
    comes first, then the lower id.
    Purity is the share of a cluster's most frequent class among its labelled images.

    Args:
        assignments: of N images.
        labels: [N], -1 without one; or None.
    """
    sizes = np.bincount(assignments.clusters[assignments.clusters >= 0])
    filled = np.flatnonzero(sizes)
    by_size = filled[np.argsort(-sizes[filled], kind="stable")]
    each = 1 if len(filled) < FEW_CLUSTERS else 2
    smallest = filled[np.argsort(sizes[filled], kind="stable")]
    roles: dict[int, list[str]] = {}
    ranked = [("largest", by_size), ("smallest", smallest)]
    majority, labelled = class_majorities(assignments.clusters, labels, len(sizes))
    if labels is not None and labelled.any():
        needed = min(LEAST_LABELLED, int(labelled.max()))
        rated = by_size[labelled[by_size] >= needed]
        purity = majority[rated] / labelled[rated]
        ranked.append(("purest", rated[np.argsort(-purity, kind="stable")]))
        ranked.append(("most mixed", rated[np.argsort(purity, kind="stable")]))
    for role, order in ranked:
        for cluster in order[:each]:
            roles.setdefault(int(cluster), []).append(role)
    if len(filled) <= ALL_SHOWN:
        for cluster in by_size:
            roles.setdefault(int(cluster), [])
    return tuple(
        _describe(cluster, tuple(names), assignments, labels, majority, labelled) for cluster, names in roles.items()
    )


def class_majorities(clusters: IntArray, labels: IntArray | None, num_clusters: int) -> tuple[IntArray, IntArray]:
    """Images of each cluster's most frequent class, and its images with a label; both [K]."""
    majority, labelled = np.zeros(num_clusters, np.int64), np.zeros(num_clusters, np.int64)
    if labels is not None and ((clusters >= 0) & (labels >= 0)).any():
        table = contingency(clusters, labels)
        np.maximum.at(majority, table.rows, table.counts)
        np.add.at(labelled, table.rows, table.counts)
    return majority, labelled


def sample_ids(chosen: tuple[ChosenCluster, ...]) -> Iterator[int]:
    """Every image that is shown."""
    for one in chosen:
        yield from one.typical
        yield from one.least_typical


def _describe(
    cluster: int,
    roles: tuple[str, ...],
    assignments: Assignments,
    labels: IntArray | None,
    majority: IntArray,
    labelled: IntArray,
) -> ChosenCluster:
    members = np.flatnonzero(assignments.clusters == cluster)
    order = members[np.argsort(assignments.distances[members], kind="stable")]  # nan come last
    known = int(np.isfinite(assignments.distances[members]).sum())
    ranked = order[:known] if known else order
    num_typical = min(IMAGES_EACH, (len(ranked) + 1) // 2)
    num_least = min(IMAGES_EACH, len(ranked) // 2)
    classes: tuple[tuple[int, int], ...] = ()
    if labels is not None:
        own = labels[members]
        found, counts = np.unique(own[own >= 0], return_counts=True)
        frequent = np.argsort(-counts, kind="stable")
        classes = tuple((int(found[i]), int(counts[i])) for i in frequent)
    return ChosenCluster(
        cluster=cluster,
        roles=roles,
        size=len(members),
        purity=float(majority[cluster] / labelled[cluster]) if labelled[cluster] else None,
        classes=classes,
        typical=tuple(ranked[:num_typical].tolist()),
        least_typical=tuple(ranked[::-1][:num_least].tolist()),
    )
