"""Which clusters are shown, which of their images, and the table of clusters and classes."""

from __future__ import annotations

import numpy as np
import pytest

from dcdist.report.blocks import HeatMap, Sentence
from dcdist.report.choice import IMAGES_EACH, choose_clusters
from dcdist.report.clusterings import Assignments
from dcdist.report.images import MOST_COLUMNS, MOST_ROWS, class_map, label_names


def assignments(clusters: list[int], distances: list[float] | None = None) -> Assignments:
    return Assignments(
        np.array(clusters), np.arange(len(clusters)) / 100.0 if distances is None else np.array(distances), 1
    )


def test_clusters_are_chosen_by_size_and_purity() -> None:
    """Cluster 0: 14 images, half and half; 1: 12, all of class 1; 2: empty; 3: 11, three quarters of class 0."""
    clusters = [0] * 14 + [1] * 12 + [3] * 11
    labels = [0, 1] * 7 + [1] * 12 + [0] * 8 + [1] * 3
    chosen = choose_clusters(assignments(clusters), np.array(labels))
    assert {one.cluster: one.roles for one in chosen} == {
        0: ("largest", "most mixed"),
        3: ("smallest",),
        1: ("purest",),
    }
    by_cluster = {one.cluster: one for one in chosen}
    assert (by_cluster[0].size, by_cluster[0].purity, by_cluster[0].classes) == (14, 0.5, ((0, 7), (1, 7)))
    assert (by_cluster[1].size, by_cluster[1].purity, by_cluster[1].classes) == (12, 1.0, ((1, 12),))
    assert (by_cluster[3].size, by_cluster[3].classes) == (11, ((0, 8), (1, 3)))
    assert by_cluster[3].purity == pytest.approx(8 / 11)


def test_a_cluster_of_one_image_is_not_the_purest() -> None:
    clusters = [0] * 20 + [1] * 10 + [2]
    labels = [0, 1] * 10 + [0] * 9 + [1, 1]
    roles = {one.cluster: one.roles for one in choose_clusters(assignments(clusters), np.array(labels))}
    assert roles == {0: ("largest", "most mixed"), 2: ("smallest",), 1: ("purest",)}


def test_without_labels_sizes_alone_choose() -> None:
    chosen = choose_clusters(assignments([0, 1, 1, 2, 2, 2]), None)
    assert [(one.cluster, one.roles, one.purity, one.classes) for one in chosen] == [
        (2, ("largest",), None, ()),
        (0, ("smallest",), None, ()),
        (1, (), None, ()),  # of so few clusters all are shown
    ]


def test_of_five_clusters_those_with_a_role_are_shown() -> None:
    clusters = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]
    assert [(one.cluster, one.roles) for one in choose_clusters(assignments(clusters), None)] == [
        (4, ("largest",)),
        (0, ("smallest",)),
    ]


def test_of_many_clusters_two_play_each_role() -> None:
    sizes = [10 + number for number in range(20)]
    clusters = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    chosen = choose_clusters(assignments(clusters), np.array([c % 2 for c in range(len(clusters))]))
    roles = {one.cluster: one.roles for one in chosen}
    assert "largest" in roles[19]
    assert "largest" in roles[18]
    assert "smallest" in roles[0]
    assert "smallest" in roles[1]
    assert sum("purest" in names for names in roles.values()) == 2
    assert sum("most mixed" in names for names in roles.values()) == 2


def test_typical_images_are_near_and_least_typical_ones_far() -> None:
    distances = [0.5, 0.1, 0.4, 0.2, float("nan"), 0.3]
    (chosen,) = choose_clusters(assignments([0, 0, 0, 0, 0, 0], distances), None)
    assert chosen.roles == ("largest", "smallest")
    assert chosen.typical == (1, 3, 5)  # one of five is in the middle: it is typical
    assert chosen.least_typical == (0, 2)


def test_large_clusters_show_their_ends_alone() -> None:
    (chosen,) = choose_clusters(assignments([0] * 100), None)
    assert chosen.typical == tuple(range(IMAGES_EACH))
    assert chosen.least_typical == tuple(range(99, 99 - IMAGES_EACH, -1))


def test_an_image_alone_is_typical() -> None:
    (chosen,) = choose_clusters(assignments([-1, 0], [float("nan"), float("nan")]), None)
    assert (chosen.typical, chosen.least_typical) == ((1,), ())


def test_nothing_has_a_cluster() -> None:
    assert choose_clusters(assignments([-1, -1]), np.array([0, 1])) == ()


def test_the_table_of_clusters_and_classes() -> None:
    """Sorted by the most frequent class, images without label or cluster left out, names where there are."""
    clusters = [0, 0, 0, 1, 1, 2, 2, 2, -1, 0]
    labels = [1, 1, 0, 0, 0, 1, 1, 1, 0, -1]
    (chart,) = class_map(assignments(clusters), np.array(labels), ["cat"], "the final clustering")
    assert isinstance(chart, HeatMap)
    assert chart.row_names == ("1", "2", "0")
    assert chart.column_names == ("cat", "class 1")
    assert chart.counts.tolist() == [[2, 0], [0, 3], [1, 2]]
    assert chart.row_totals.tolist() == [2, 3, 3]


def test_of_many_clusters_and_classes_the_largest_are_shown() -> None:
    """Cluster c has c + 1 images, of class c."""
    clusters = np.repeat(np.arange(50), np.arange(1, 51))
    (chart,) = class_map(assignments(clusters.tolist()), clusters, None, "it")
    assert isinstance(chart, HeatMap)
    assert chart.counts.shape == (MOST_ROWS, MOST_COLUMNS)
    assert set(chart.row_names) == {str(cluster) for cluster in range(50 - MOST_ROWS, 50)}
    assert chart.column_names == tuple(f"class {label}" for label in range(50 - MOST_COLUMNS, 50))
    assert chart.row_totals.tolist().count(21) == 1  # of classes that are not shown too
    assert "The 30 largest of 50 clusters." in chart.caption
    assert "The 24 classes, of 50, that are most frequent in them." in chart.caption


def test_classes_are_those_of_the_clusters_shown() -> None:
    """Class 0 is the most frequent of all, in small clusters that are not shown."""
    small = np.repeat(np.arange(40, 540), 2)
    clusters = np.concatenate([np.repeat(np.arange(40), 10), small])
    labels = np.concatenate([np.repeat(np.arange(40) + 1, 10), np.zeros(len(small), int)])
    (chart,) = class_map(assignments(clusters.tolist()), labels, None, "it")
    assert isinstance(chart, HeatMap)
    assert "class 0" not in chart.column_names
    assert (chart.counts.sum(axis=0) == 10).all()


def test_no_image_has_both() -> None:
    (block,) = class_map(assignments([0, -1]), np.array([-1, 0]), None, "it")
    assert block == Sentence("No image has both a cluster and a label.")


def test_names_of_classes_come_from_evaluations_of_the_runs_own_data() -> None:
    own = {"data": {"of_the_run": True}, "label_names": ["cat", "dog"]}
    others = {"data": {"of_the_run": False}, "label_names": ["car", "bus"]}
    nameless = {"data": {"of_the_run": True}, "label_names": None}
    assert label_names([own, others, nameless], ["x"]) == ["cat", "dog"]
    assert label_names([others, nameless], ["x"]) == ["x"]
    assert label_names([], None) is None
