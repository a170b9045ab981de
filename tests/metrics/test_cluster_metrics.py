"""Balance and change of clusterings, hand-computed and against brute force."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from dcdist.metrics.cluster_metrics import (
    changed_ratio,
    cluster_sizes,
    clustering_record,
    imbalance_factor,
    size_entropy_ratio,
    size_histogram,
    size_max_ratio,
)


def test_sizes_count_empty_clusters_and_leave_out_the_unassigned() -> None:
    assert cluster_sizes(np.array([2, -1, 0, 2], np.int32), 4).tolist() == [1, 0, 2, 0]


def test_an_id_beyond_the_number_of_clusters_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="an assignment of 3 with 3 clusters"):
        cluster_sizes(np.array([0, 3]), 3)


@pytest.mark.parametrize(
    ("sizes", "entropy_ratio", "imbalance", "largest"),
    [
        ([5, 5, 5, 5], 1.0, 1.0, 0.25),
        ([20, 0, 0, 0], 0.0, 4.0, 1.0),
        ([10, 10, 0, 0], 0.5, 2.0, 0.5),
        ([1, 3], -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)), 2 * 10 / 16, 0.75),
        ([7], 1.0, 1.0, 1.0),
    ],
)
def test_balance_by_hand(sizes: list[int], entropy_ratio: float, imbalance: float, largest: float) -> None:
    array = np.array(sizes)
    assert size_entropy_ratio(array) == pytest.approx(entropy_ratio, abs=1e-12)
    assert imbalance_factor(array) == pytest.approx(imbalance, abs=1e-12)
    assert size_max_ratio(array) == pytest.approx(largest, abs=1e-12)


def test_imbalance_factor_is_that_of_faiss() -> None:
    import faiss

    assignments = np.random.default_rng(0).integers(0, 50, 3000) ** 2 // 50
    theirs = faiss.imbalance_factor(len(assignments), 50, faiss.swig_ptr(assignments))
    assert imbalance_factor(cluster_sizes(assignments, 50)) == pytest.approx(theirs, abs=1e-9)


def test_permuted_ids_have_not_changed() -> None:
    previous = np.array([0, 0, 1, 2, 2, 2])
    assert changed_ratio(previous, np.array([9, 9, 0, 4, 4, 4])) == 0.0


def test_changed_ratio_by_hand() -> None:
    # 0 -> 5 (3 samples), 1 -> 2 (1); one sample of 0 went to 2, and 3's partner 5 is taken
    previous = np.array([0, 0, 0, 0, 1, 3, -1])
    current = np.array([5, 5, 5, 2, 2, 5, 0])
    assert changed_ratio(previous, current) == pytest.approx(2 / 6, abs=1e-12)


def test_matching_is_one_to_one() -> None:
    """Two clusters that became one: only the larger one's samples stayed."""
    assert changed_ratio(np.array([0, 0, 0, 1, 1]), np.zeros(5, np.int32)) == pytest.approx(2 / 5, abs=1e-12)
    assert changed_ratio(np.zeros(5, np.int32), np.array([0, 0, 0, 1, 1])) == pytest.approx(2 / 5, abs=1e-12)


def greedy_changed_ratio(previous: np.ndarray, current: np.ndarray) -> float:
    """The definition, a pair at a time."""
    pairs, counts = np.unique(np.stack([previous, current]), axis=1, return_counts=True)
    kept, rows, columns = 0, set(), set()
    for place in sorted(range(len(counts)), key=lambda p: (-counts[p], *pairs[:, p])):
        row, column = pairs[:, place]
        if row not in rows and column not in columns:
            kept += counts[place]
            rows.add(row)
            columns.add(column)
    return 1 - kept / len(previous)


@pytest.mark.parametrize("seed", range(20))
def test_changed_ratio_is_that_of_the_greedy_matching(seed: int) -> None:
    generator = np.random.default_rng(seed)
    previous = generator.integers(0, generator.integers(1, 60), 500)
    moved = generator.random(500) < generator.random()
    current = np.where(moved, generator.integers(0, generator.integers(1, 60), 500), (previous * 7 + 3) % 61)
    assert changed_ratio(previous, current) == pytest.approx(greedy_changed_ratio(previous, current), abs=1e-12)


def test_nothing_assigned_in_both_is_nan() -> None:
    assert math.isnan(changed_ratio(np.array([-1, 0]), np.array([0, -1])))


def test_record_of_a_first_clustering_without_labels() -> None:
    record = clustering_record(
        head=1,
        assignments=np.array([0, 1, 1, -1, 3], np.int32),
        num_clusters=4,
        previous_assignments=None,
        targets=np.full(5, -1, np.int32),
        num_empty_repaired=2,
        objective=0.25,
        iterations=20,
        seconds={"cluster": 1.5},
    )
    assert record.pop("size_entropy_ratio") == pytest.approx(0.75, abs=1e-12)  # 1.5 bits of 2
    assert record == {
        "head": 1,
        "num_clusters": 4,
        "num_empty_repaired": 2,
        "objective": 0.25,
        "iterations": 20,
        "imbalance_factor": 4 * 6 / 16,
        "size_max_ratio": 0.5,
        "size_histogram": {  # sizes 1, 2, 0, 1 around a mean of 1
            "0": 1,
            "0.125": 0,
            "0.25": 0,
            "0.5": 0,
            "0.75": 0,
            "1": 2,
            "1.5": 0,
            "2": 1,
            "3": 0,
            "4": 0,
            "8": 0,
            "16": 0,
            "inf": 0,
        },
        "seconds": {"cluster": 1.5},
    }


def test_a_size_is_counted_under_the_least_bound_that_it_does_not_exceed() -> None:
    sizes = np.array([10] * 16 + [0, 5, 6, 15, 16, 200, 3, 4, 1])  # 410 / 25: a mean of 16.4
    histogram = size_histogram(sizes)
    bounds = {name: float(name) for name in histogram}
    below = 0
    for name, bound in bounds.items():
        assert histogram[name] == (sizes <= bound * 16.4).sum() - below, name
        below += histogram[name]
    assert below == 25
    assert size_histogram(np.zeros(3, np.int64)) == {name: 3 * (name == "0") for name in histogram}


def test_record_of_a_later_clustering_with_some_labels() -> None:
    record = clustering_record(
        head=0,
        assignments=np.array([0, 0, 1, 1], np.int32),
        num_clusters=2,
        previous_assignments=np.array([1, 1, 0, 0], np.int32),
        targets=np.array([3, 3, 3, -1], np.int32),
        num_empty_repaired=0,
        objective=0.25,
        iterations=20,
        seconds={},
    )
    assert record["nmi_previous"] == pytest.approx(1.0, abs=1e-12)
    assert record["changed_ratio"] == 0.0
    assert record["nmi_targets"] == 0.0  # one class alone says nothing of two clusters


def test_metrics_do_not_import_torch() -> None:
    modules = "cluster_metrics, jsonl, progress, prometheus, recorder, tensorboard"
    check = f"import sys; from dcdist.metrics import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_a_million_clusters_take_little_memory() -> None:
    generator = np.random.default_rng(0)
    before = generator.permutation(1_281_167).astype(np.int32) % 1_000_000
    now = np.where(generator.random(len(before)) < 0.3, generator.permutation(before), before).astype(np.int32)
    labels = generator.integers(1000, size=len(before)).astype(np.int32)
    tracemalloc.start()
    try:
        record = clustering_record(
            head=0,
            assignments=now,
            num_clusters=1_000_000,
            previous_assignments=before,
            targets=labels,
            num_empty_repaired=0,
            objective=0.0,
            iterations=20,
            seconds={},
        )
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50e6
    assert sum(record["size_histogram"].values()) == 1_000_000
    assert 0.2 < record["changed_ratio"] < 0.4
