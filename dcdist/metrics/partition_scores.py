"""How far two partitions of the same samples agree: clusters with clusters, or clusters with classes.

Samples with a negative id in either partition (no label, no features) are left out. Scores agree with scikit-learn's,
from a sparse table, so a million clusters cost what the samples cost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcdist.metrics.contingency import Contingency, IntArray, contingency


def entropy(sizes: IntArray) -> float:
    """Entropy in nats of a partition with these cluster sizes; those of 0 add nothing."""
    shares = sizes[sizes > 0] / max(1, int(sizes.sum(dtype=np.int64)))
    return float(0.0 - np.dot(shares, np.log(shares)))  # not -0.0 of a single cluster


def nmi(first: IntArray, second: IntArray) -> float:
    """Mutual information over the arithmetic mean of the two entropies, in 0..1 (Vinh et al., 2010).

    1 where both partitions have one cluster at most, 0 where only one of them has.
    """
    return nmi_of(contingency(first, second))


def nmi_of(table: Contingency) -> float:
    """nmi() of partitions whose table is there already."""
    entropies = entropy(table.row_sizes) + entropy(table.column_sizes)
    if entropies == 0.0:
        return 1.0
    information = entropies - entropy(table.counts)  # I(a; b) = H(a) + H(b) - H(a, b)
    return min(1.0, max(0.0, 2 * information / entropies))  # rounding alone leads outside


def ari(first: IntArray, second: IntArray) -> float:
    """Share of sample pairs on which the partitions agree, adjusted for chance: 0 expected, 1 equal (Hubert, 1985)."""
    table = contingency(first, second)
    together_in_both = _num_ordered_pairs(table.counts)
    together_in_first = _num_ordered_pairs(table.row_sizes)
    together_in_second = _num_ordered_pairs(table.column_sizes)
    num_pairs = table.num_samples * (table.num_samples - 1)
    only_first, only_second = together_in_first - together_in_both, together_in_second - together_in_both
    if only_first == 0 and only_second == 0:
        return 1.0
    apart_in_both = num_pairs - together_in_both - only_first - only_second
    agreement = 2 * (together_in_both * apart_in_both - only_first * only_second)  # Python integers: no overflow
    scale = (together_in_both + only_first) * (only_first + apart_in_both) + (together_in_both + only_second) * (
        only_second + apart_in_both
    )
    return agreement / scale


def _num_ordered_pairs(sizes: IntArray) -> int:
    wide = sizes.astype(np.int64)
    return int(np.dot(wide, wide - 1))


def ami(first: IntArray, second: IntArray) -> float:
    """Mutual information adjusted for chance, arithmetic mean (Vinh et al., 2010), for few clusters (scikit-learn)."""
    from sklearn.metrics import adjusted_mutual_info_score

    assigned = (first >= 0) & (second >= 0)
    return float(adjusted_mutual_info_score(first[assigned], second[assigned]))


def name_clusters(assignments: IntArray, labels: IntArray) -> NDArray[np.int64]:
    """The class [K] of each cluster under the one-to-one matching that names most samples rightly.

    Clusters and classes may differ in number: -1 for a cluster that no class is left for.
    """
    from scipy.optimize import linear_sum_assignment

    table = contingency(assignments, labels).dense()
    clusters, classes = linear_sum_assignment(table, maximize=True)
    names = np.full(len(table), -1, np.int64)
    names[clusters] = classes
    return names


def name_by_majority(assignments: IntArray, labels: IntArray) -> NDArray[np.int64]:
    """The commonest class [K] of each cluster (of equals the lowest), -1 for a cluster without labelled samples."""
    table = contingency(assignments, labels)
    order = np.lexsort((-table.columns, table.counts))  # the largest count last, of equals the lowest class
    names = np.full(len(table.row_sizes), -1, np.int64)
    names[table.rows[order]] = table.columns[order]  # of several writes to one place the last holds
    return names


def accuracy_of_names(assignments: IntArray, labels: IntArray, names: NDArray[np.int64]) -> float:
    """Share of labelled samples whose cluster bears the name of their class; nan where none is labelled.

    Args:
        assignments: [N] cluster ids; those past the end of `names` count as wrong.
        labels: [N] classes.
        names: [K] class of each cluster, -1 for none.
    """
    known = (assignments >= 0) & (labels >= 0)
    assignments, labels = assignments[known], labels[known]
    if not len(labels):
        return float("nan")
    padded = np.concatenate([names, [-1]])
    return float((padded[np.minimum(assignments, len(names))] == labels).mean())


def hungarian_accuracy(assignments: IntArray, labels: IntArray) -> float:
    """Share of samples whose cluster is matched to their class by the best one-to-one matching ("ACC").

    Clusters and classes may differ in number; what finds no partner counts as wrong. nan without labelled samples.
    """
    return accuracy_of_names(assignments, labels, name_clusters(assignments, labels))


def majority_purity(assignments: IntArray, labels: IntArray) -> float:
    """Share of samples of their cluster's commonest class; grows with the number of clusters. nan without labels."""
    return accuracy_of_names(assignments, labels, name_by_majority(assignments, labels))
