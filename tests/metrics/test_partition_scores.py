"""Agreement of partitions: hand-computed, and as scikit-learn computes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from dcdist.metrics.contingency import contingency
from dcdist.metrics.partition_scores import (
    accuracy_of_names,
    ami,
    ari,
    entropy,
    hungarian_accuracy,
    majority_purity,
    name_by_majority,
    name_clusters,
    nmi,
)

PAIRS = {
    "one cluster each": ([0, 0, 0], [5, 5, 5]),
    "one cluster against three": ([0, 0, 0], [0, 1, 2]),
    "three clusters against one": ([0, 1, 2], [4, 4, 4]),
    "all alone in both": ([0, 1, 2, 3], [3, 1, 0, 2]),
    "permuted ids": ([0, 0, 1, 1, 2], [7, 7, 0, 0, 3]),
    "independent": ([0, 0, 1, 1], [0, 1, 0, 1]),
    "nested": ([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2]),
}


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    num_samples, num_first, num_second = (int(n) for n in generator.integers(2, (3000, 200, 50)))
    first = generator.integers(0, num_first, num_samples, dtype=np.int32)
    second = np.where(
        generator.random(num_samples) < 0.6, first % num_second, generator.integers(0, num_second, num_samples)
    )
    return first, second.astype(np.int32)


@pytest.mark.parametrize("name", PAIRS)
def test_scores_of_small_partitions_are_those_of_scikit_learn(name: str) -> None:
    first, second = (np.array(ids, np.int32) for ids in PAIRS[name])
    assert nmi(first, second) == pytest.approx(reference.normalized_mutual_info_score(first, second), abs=1e-9)
    assert ari(first, second) == pytest.approx(reference.adjusted_rand_score(first, second), abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_random_partitions_are_those_of_scikit_learn(seed: int) -> None:
    first, second = random_pair(seed)
    assert nmi(first, second) == pytest.approx(reference.normalized_mutual_info_score(first, second), abs=1e-9)
    assert ari(first, second) == pytest.approx(reference.adjusted_rand_score(first, second), abs=1e-9)
    dense = reference.cluster.contingency_matrix(first, second)
    table = contingency(first, second).dense()
    np.testing.assert_array_equal(table[table.any(1)][:, table.any(0)], dense)
    assert majority_purity(first, second) == pytest.approx(dense.max(1).sum() / len(first), abs=1e-12)


def test_no_samples_score_as_in_scikit_learn() -> None:
    empty = np.empty(0, np.int32)
    assert nmi(empty, empty) == reference.normalized_mutual_info_score(empty, empty) == 1.0
    assert ari(empty, empty) == reference.adjusted_rand_score(empty, empty) == 1.0
    assert math.isnan(hungarian_accuracy(empty, empty))
    assert math.isnan(majority_purity(empty, empty))


def test_nmi_by_hand() -> None:
    # a splits in halves, b in quarters and a half: I = H(a) = ln 2, H(b) = 1.5 ln 2
    first, second = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert entropy(np.bincount(second)) == pytest.approx(1.5 * math.log(2), abs=1e-12)
    assert nmi(first, second) == pytest.approx(2 * 1 / (1 + 1.5), abs=1e-12)


def test_negative_ids_are_left_out() -> None:
    first = np.array([0, 0, 1, 1, -1, 1], np.int32)
    second = np.array([2, 2, 0, 0, 0, -1], np.int32)
    assert nmi(first, second) == pytest.approx(1.0, abs=1e-12)
    assert hungarian_accuracy(first, second) == 1.0
    assert contingency(first, second).num_samples == 4


def test_products_of_ids_may_exceed_32_bits() -> None:
    first = np.array([70000, 3, 3, 70000], np.int32)
    second = np.array([70010, 13, 13, 13], np.int32)
    table = contingency(first, second)
    assert table.rows.tolist() == [3, 70000, 70000]
    assert table.columns.tolist() == [13, 13, 70010]
    assert table.counts.tolist() == [2, 1, 1]


def test_ami_is_that_of_scikit_learn_without_negative_ids() -> None:
    first, second = random_pair(3)
    with_gaps = np.concatenate([first, [-1, 4]]), np.concatenate([second, [0, -1]])
    assert ami(*with_gaps) == pytest.approx(reference.adjusted_mutual_info_score(first, second), abs=1e-12)


def test_hungarian_accuracy_takes_the_best_matching_not_the_greedy_one() -> None:
    # table [[3, 2], [3, 0]]: greedy would match cluster 0 to class 0 and score 3 of 8; the best scores 5
    clusters = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    classes = np.array([0, 0, 0, 1, 1, 0, 0, 0])
    assert name_clusters(clusters, classes).tolist() == [1, 0]
    assert hungarian_accuracy(clusters, classes) == 5 / 8


def test_more_clusters_than_classes() -> None:
    clusters = np.array([0, 0, 0, 1, 1, 2, 3])
    classes = np.array([0, 0, 1, 0, 0, 1, 1])
    # one to one, two of the four clusters get no class: (0 or 1, class 0) and (0, 2 or 3, class 1)
    assert hungarian_accuracy(clusters, classes) == 3 / 7
    assert (name_clusters(clusters, classes) == -1).sum() == 2
    assert majority_purity(clusters, classes) == 6 / 7


def test_majority_names_take_the_lowest_of_equal_classes() -> None:
    clusters = np.array([0, 0, 2, 2, 2])
    classes = np.array([4, 1, 3, 3, 0])
    assert name_by_majority(clusters, classes).tolist() == [1, -1, 3]


def test_accuracy_of_names_counts_unknown_clusters_as_wrong() -> None:
    names = np.array([1, -1])
    assert accuracy_of_names(np.array([0, 1, 5, 0, -1]), np.array([1, 1, 0, 0, 0]), names) == 1 / 4
