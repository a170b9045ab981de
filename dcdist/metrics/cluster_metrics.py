"""Balance and stability of a clustering: what is recorded of every reassignment.

Shapes: N samples, K clusters. An assignment below 0 is a sample without features and is left out everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdist.metrics.contingency import Contingency, IntArray, contingency
from dcdist.metrics.partition_scores import entropy, nmi, nmi_of

HISTOGRAM_BOUNDS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)  # multiples of the mean size


def cluster_sizes(assignments: IntArray, num_clusters: int) -> NDArray[np.int64]:
    """How many samples each of the K clusters has, empty ones included."""
    sizes = np.bincount(assignments[assignments >= 0], minlength=num_clusters)
    assert len(sizes) == num_clusters, f"an assignment of {len(sizes) - 1} with {num_clusters} clusters"
    return sizes


def size_entropy_ratio(sizes: NDArray[np.int64]) -> float:
    """Entropy of the sizes over log K: 1 where all clusters are equally large (and where there is one alone)."""
    return entropy(sizes) / math.log(len(sizes)) if len(sizes) > 1 else 1.0


def imbalance_factor(sizes: NDArray[np.int64]) -> float:
    """K * sum n^2 / N^2, as faiss defines it: 1 where all clusters are equally large, K where one has everything."""
    total = float(sizes.sum())
    return len(sizes) * float((sizes.astype(np.float64) ** 2).sum()) / total**2 if total else float("nan")


def size_max_ratio(sizes: NDArray[np.int64]) -> float:
    """The largest cluster's share of the samples."""
    total = int(sizes.sum())
    return int(sizes.max()) / total if total else float("nan")


def size_histogram(sizes: NDArray[np.int64]) -> dict[str, int]:
    """How many clusters have at most so many times the mean size N / K, and more than the bound before.

    The keys are HISTOGRAM_BOUNDS as text, the first of which, 0, counts empty clusters, and "inf".
    """
    bounds = np.array(HISTOGRAM_BOUNDS) * (sizes.sum() / len(sizes))
    counts = np.bincount(np.searchsorted(bounds, sizes), minlength=len(bounds) + 1)
    return {f"{bound:g}": int(count) for bound, count in zip((*HISTOGRAM_BOUNDS, math.inf), counts, strict=True)}


def changed_ratio(previous: IntArray, current: IntArray) -> float:
    """Share of samples that left their cluster, of those that both clusterings assign; nan where there are none.

    The ids of two clusterings are unrelated, so clusters are matched first, one to one and greedily: of all pairs the
    one that shares most samples is matched, then the one that shares most among those left, and so on (of equals the
    lowest previous, then current id). Samples outside of the matched pairs have changed; so have all that a cluster
    without a partner holds. A permutation of ids changes nothing.
    """
    return _changed_ratio_of([contingency(previous, current)])


def _changed_ratio_of(holder: list[Contingency]) -> float:
    """Takes the table out of its list, so that it is gone as soon as its pairs are sorted."""
    table = holder.pop()
    total = table.num_samples
    if not total:
        return float("nan")
    num_rows, num_columns = len(table.row_sizes), len(table.column_sizes)
    # Pairs in the greedy order; a pair that comes first in its row and in its column is matched whatever happens
    # elsewhere, so each round matches many at once.
    order = np.argsort(-table.counts, kind="stable")
    rows, columns, counts = table.rows[order], table.columns[order], table.counts[order]
    del order, table
    first_of_row, first_of_column = np.empty(num_rows, np.int32), np.empty(num_columns, np.int32)
    kept = 0
    while len(rows):
        places = np.arange(len(rows), dtype=np.int32)
        first_of_row[rows[::-1]] = places[::-1]  # of several writes to one place the last holds
        first_of_column[columns[::-1]] = places[::-1]
        matched = (first_of_row[rows] == places) & (first_of_column[columns] == places)
        kept += int(counts[matched].sum(dtype=np.int64))
        left = ~(matched[first_of_row[rows]] | matched[first_of_column[columns]])
        rows, columns, counts = rows[left], columns[left], counts[left]
    return 1.0 - kept / total


def clustering_record(
    *,
    head: int,
    assignments: IntArray,
    num_clusters: int,
    previous_assignments: IntArray | None,
    targets: IntArray | None,
    num_empty_repaired: int,
    objective: float,
    iterations: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The values of a "clustering" metric record, one head's.

    Args:
        head: its number.
        assignments: [N] clusters of the samples.
        num_clusters: K, empty clusters included.
        previous_assignments: [N] of the reassignment before; None at the first: nmi_previous and changed_ratio are
            left out then.
        targets: [N] labels, -1 where a sample has none; None, or none at all: nmi_targets is left out.
        num_empty_repaired: clusters that were refilled.
        objective: sum of squared distances / number of samples.
        iterations: of k-means.
        seconds: of each phase.
    """
    # Each step's tables are gone before the next one's: of a million clusters they are the memory.
    record: dict[str, Any] = {
        "head": head,
        "num_clusters": num_clusters,
        "num_empty_repaired": num_empty_repaired,
        "objective": objective,
        "iterations": iterations,
        **_balance(cluster_sizes(assignments, num_clusters)),
    }
    if previous_assignments is not None:
        tables = [contingency(previous_assignments, assignments)]
        record["nmi_previous"] = nmi_of(tables[0])
        record["changed_ratio"] = _changed_ratio_of(tables)
    if targets is not None and (targets >= 0).any():
        record["nmi_targets"] = nmi(assignments, targets)
    record["seconds"] = dict(seconds)
    return record


def _balance(sizes: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "size_entropy_ratio": size_entropy_ratio(sizes),
        "imbalance_factor": imbalance_factor(sizes),
        "size_max_ratio": size_max_ratio(sizes),
        "size_histogram": size_histogram(sizes),
    }
