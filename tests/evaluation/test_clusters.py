"""Clusters of features and their scores: separated groups, hand-computed tables, the raw digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits

from dcdist.clustering.pca import l2_normalize
from dcdist.errors import RunError, UsageError
from dcdist.evaluation.clusters import (
    Partition,
    cluster_scores,
    describe_clusters,
    render_clusters,
    render_confusion,
)
from dcdist.evaluation.feature_clusters import cluster_features, leading_directions
from dcdist.evaluation.readouts import NEIGHBORS, PLAIN, WARD, WHITENED, label_free_readouts, ward_readout, whitened
from dcdist.metrics.partition_scores import ari, nmi


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, np.ndarray]:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32), data.target


def groups(num_groups: int, size: int, distance: float) -> tuple[torch.Tensor, np.ndarray]:
    labels = np.repeat(np.arange(num_groups), size)
    centers = torch.eye(num_groups) * distance
    noise = torch.randn(len(labels), num_groups, generator=torch.Generator().manual_seed(0))
    return centers[labels] + noise, labels


def test_separated_groups_are_found() -> None:
    features, labels = groups(5, 30, 20.0)
    clusters = cluster_features(features, 5, seed=0)
    assert ari(clusters.assignments.numpy(), labels) == 1.0
    means = torch.stack([features[clusters.assignments == k].mean(0) for k in range(5)])
    torch.testing.assert_close(clusters.centroids, means, rtol=1e-5, atol=1e-5)
    squared = (features - clusters.centroids[clusters.assignments.long()]).square().sum(1)
    assert clusters.objective == pytest.approx(float(squared.mean()), rel=1e-5)


def test_clusters_depend_on_the_seed_alone_and_restarts_help(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    features, _ = digits
    np.random.seed(1)
    first = cluster_features(features, 10, seed=3, num_restarts=1)
    np.random.seed(2)
    second = cluster_features(features, 10, seed=3, num_restarts=1)
    assert torch.equal(first.assignments, second.assignments)
    objectives = [cluster_features(features, 10, seed, num_restarts=1).objective for seed in range(8)]
    assert len(set(objectives)) > 1
    assert cluster_features(features, 10, 0, num_restarts=20).objective <= min(objectives) * 1.001


def test_more_clusters_than_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="3 images cannot make 4 clusters: ask for 1 to 3"):
        cluster_features(torch.zeros(3, 2), 4, seed=0)


def test_ward_with_a_cluster_a_row_is_agglomeration(
    digits: tuple[torch.Tensor, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = digits[0][:120]
    monkeypatch.setattr("dcdist.evaluation.readouts._WARD_ROWS_PER_CLUSTER", 1)
    ours = ward_readout(features, 6, seed=0).assignments
    theirs = AgglomerativeClustering(6, linkage="ward").fit_predict(features.numpy())
    assert ari(ours.numpy(), theirs) == 1.0


def test_whitened_rows_have_equal_variance_before_their_length_is_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([100.0, 10.0, 1.0, 0.1])
    features = torch.randn(5000, 4, generator=generator) * scales + 7
    rows = whitened(features, num_dimensions=3, epsilon=1e-9)(features)
    assert rows.shape == (5000, 3)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5000))
    torch.testing.assert_close(rows.T @ rows / 5000, torch.eye(3) / 3, rtol=0.0, atol=0.02)


def test_whitening_keeps_no_more_dimensions_than_there_are() -> None:
    features = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert whitened(features, 32)(features).shape == (10, 4)
    assert whitened(features[:3], 32)(features).shape == (10, 3)


def test_equal_features_are_named() -> None:
    with pytest.raises(RunError, match="the features are all equal"):
        whitened(torch.ones(20, 4), 2)


def test_scores_and_table_by_hand() -> None:
    assignments = torch.tensor([0, 0, 0, 1, 1, 2, -1, 2], dtype=torch.int32)
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 0, -1])
    scores = cluster_scores(assignments, labels)
    assert scores.table.tolist() == [[2, 1], [1, 1], [0, 1]]
    assert scores.accuracy == 3 / 6
    assert scores.purity == 4 / 6
    known = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 1, 1])
    assert scores.nmi == pytest.approx(nmi(*known), abs=1e-12)
    with pytest.raises(UsageError, match="no image has a label and a cluster"):
        cluster_scores(assignments, torch.full((8,), -1))


def mean_nmi(rows: torch.Tensor, labels: np.ndarray) -> float:
    return float(np.mean([nmi(cluster_features(rows, 10, seed).assignments.numpy(), labels) for seed in range(5)]))


def mean_nmi_of_ward(rows: torch.Tensor, labels: np.ndarray) -> float:
    return float(np.mean([nmi(ward_readout(rows, 10, seed).assignments.numpy(), labels) for seed in range(5)]))


def test_raw_digits(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    """What a trained network is compared with: k-means of 20 restarts, mean of 5 seeds."""
    features, labels = digits
    assert mean_nmi(features, labels) == pytest.approx(0.742, abs=0.005)  # pixels as they are
    assert mean_nmi(l2_normalize(features), labels) == pytest.approx(0.739, abs=0.005)
    assert mean_nmi(whitened(features, 32)(features), labels) == pytest.approx(0.78, abs=0.025)
    assert mean_nmi_of_ward(l2_normalize(features), labels) == pytest.approx(0.84, abs=0.025)


def test_restarts_on_few_directions_end_where_all_features_do() -> None:
    """300 features of which 5 tell the groups apart: what is found is a minimum in all of them."""
    labels = np.repeat(np.arange(6), 60)
    features = torch.randn(360, 300, generator=torch.Generator().manual_seed(0))
    features[:, :6] += 12 * torch.eye(6)[labels]
    assert leading_directions(features, 6).shape == (360, 32)
    clusters = cluster_features(features, 6, seed=0)
    assert ari(clusters.assignments.numpy(), labels) == 1.0
    means = torch.stack([features[labels == label].mean(0) for label in range(6)])
    order = clusters.assignments[::60].long()
    torch.testing.assert_close(clusters.centroids[order], means, rtol=1e-4, atol=1e-4)
    assert clusters.objective == pytest.approx(float((features - means[labels]).square().sum(1).mean()), rel=1e-4)


def test_leading_directions_hold_the_largest_variances() -> None:
    scales = torch.cat([torch.full((32,), 5.0), torch.full((68,), 0.5)])
    features = torch.randn(400, 100, generator=torch.Generator().manual_seed(0)) * scales + 3
    leading = leading_directions(features, 2)
    variances = torch.linalg.svdvals(features - features.mean(0)).square()
    assert float(leading.square().sum()) == pytest.approx(float(variances[:32].sum()), rel=1e-3)
    assert torch.equal(leading_directions(features[:, :30], 2), features[:, :30])
    assert torch.equal(leading_directions(features, 50), features), "two directions for each of 50 clusters are all"


@pytest.mark.parametrize("name", [PLAIN, WHITENED, WARD, NEIGHBORS])
def test_readouts_assign_other_rows_to_the_same_clusters(name: str, digits: tuple[torch.Tensor, np.ndarray]) -> None:
    features = digits[0]
    fitted = label_free_readouts(features[:1200], 10, 16)[name](0)
    assert float((fitted.assign(features[:1200]) == fitted.assignments).float().mean()) > 0.999  # ties apart
    scaled = fitted.assign(3 * features[1200:]) if name in (PLAIN, WARD) else fitted.assign(features[1200:])
    assert torch.equal(scaled, fitted.assign(features[1200:])), "the length of a row tells nothing"
    assert nmi(fitted.assign(features[1200:]).numpy(), digits[1][1200:]) > 0.6


def test_a_clustering_is_described_by_hand() -> None:
    train = Partition(torch.tensor([0, 0, 0, 1, 1, -1], dtype=torch.int32), torch.tensor([1, 1, 0, 0, -1, 0]))
    heldout = Partition(torch.tensor([0, 0, 1, 1], dtype=torch.int32), torch.tensor([0, 0, 1, 0]))
    described = describe_clusters(3, train, heldout)
    assert described["table"] == [[1, 2], [1, 0], [0, 0]]
    assert described["heldout_table"] == [[2, 0], [1, 1], [0, 0]]
    assert described["train"]["sizes"] == [3, 2, 0], "images without a label are in their clusters, too"
    two_to_one = math.log(3) - 2 / 3 * math.log(2)
    assert described["train"]["class_entropies"] == pytest.approx([two_to_one, 0.0, 0.0])
    sizes = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert described["train"]["size_entropy_ratio"] == pytest.approx(sizes / math.log(3))
    assert (described["train"]["accuracy"], described["train"]["purity"]) == (3 / 4, 3 / 4)
    assert described["heldout"]["by_train_naming"] == 1 / 4
    assert described["heldout"]["by_best_naming"] == described["heldout"]["accuracy"] == 3 / 4
    assert described["names"] == [1, 0, -1]
    assert described["confusion"] == [[1, 1, 0], [0, 2, 0]]  # rows are classes, columns names, the last one: no name
    assert described["heldout_confusion"] == [[1, 2, 0], [1, 0, 0]]
    assert "heldout" not in describe_clusters(3, train)


def test_the_table_and_the_confusion_as_they_are_printed() -> None:
    train = Partition(torch.tensor([0, 0, 0, 1, 2], dtype=torch.int32), torch.tensor([1, 1, 0, 0, 0]))
    described = describe_clusters(3, train)
    table, confusion = render_clusters(described, ["cat", "dog"]), render_confusion(described, ["cat", "dog"])
    assert [line.split() for line in table.splitlines()[3:6]] == [
        ["0", "1", "2", "0.637", "dog"],
        ["1", "1", "0", "0.000", "cat"],
        ["2", "1", "0", "0.000", "-"],
    ]
    assert [line.split() for line in confusion[3:]] == [["cat", "1", "1", "1"], ["dog", "0", "2", "0"]]


def test_of_many_clusters_no_table_is_kept() -> None:
    labels = torch.arange(42) % 2
    assert describe_clusters(20, Partition(torch.arange(42) % 20, labels))["table"] is not None
    described = describe_clusters(21, Partition(torch.arange(42) % 21, labels))
    assert described["table"] is None
    assert render_clusters(described, None).splitlines()[0].startswith("final clusters: 21")
