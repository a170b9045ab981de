"""The read-out: a classifier's clusters and probabilities, or nearest centroids and what they are merged to."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from dcdist.clustering.pca import PCA
from dcdist.distributed.collectives import Collectives
from dcdist.engine.readout import Readout, _classified, assign_everywhere
from dcdist.engine.state_files import flatten, unflatten
from dcdist.features import RawFeatures
from dcdist.models.heads import Classifier

# Logits of features (x, y): log 2 + x, y, 0.
CLASSIFIER = Classifier(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([math.log(2.0), 0.0, 0.0]), relu_first=True
)
FEATURES = torch.tensor([[0.0, -5.0], [0.0, 4.0], [-3.0, 0.5]])  # (0, 0), (0, 4) and (0, 0.5) after the ReLU
SUMS = [2 + 1 + 1, 2 + math.exp(4) + 1, 2 + math.exp(0.5) + 1]
PROBABILITIES = [2 / SUMS[0], math.exp(4) / SUMS[1], 2 / SUMS[2]]


def by_classifier() -> Readout:
    readout = Readout()
    readout.classifier = CLASSIFIER
    return readout


def by_centroids() -> Readout:
    readout = Readout()
    readout.pca = PCA(torch.ones(2), 2 * torch.eye(2), torch.tensor([2.0, 1.0], dtype=torch.float64), 2)
    readout.centroids = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    readout.merged_to = torch.tensor([1, 0, 1], dtype=torch.int32)
    return readout


def raw_features(rows: torch.Tensor, sample_ids: list[int]) -> RawFeatures:
    raw = RawFeatures(len(rows) + 1, rows.shape[1], 10**6, torch.device("cpu"))
    raw.append(torch.tensor(sample_ids), rows)
    return raw


def test_a_classifier_assigns_the_likeliest_class_at_one_minus_its_probability() -> None:
    readout = by_classifier()
    shard = readout.rows(raw_features(FEATURES, [1, 2, 5]))
    assert shard.sample_ids.tolist() == [1, 2, 5]
    clusters, distances = readout.assign(shard.features)
    assert clusters.tolist() == [0, 1, 0]
    assert clusters.dtype == torch.int32
    assert distances.tolist() == pytest.approx([1 - probability for probability in PROBABILITIES], rel=1e-5)
    assert readout.num_clusters == 3


def test_a_classifiers_final_clustering() -> None:
    raw = raw_features(FEATURES, [1, 2, 5])
    (head,) = _classified(by_classifier(), raw, 6, Collectives()).heads
    assert head.assignments.tolist() == [-1, 0, 1, -1, -1, 0]
    assert head.distances.isnan().tolist() == [True, False, False, True, True, False]
    assert head.objective == pytest.approx(1 - sum(PROBABILITIES) / 3, rel=1e-5)
    assert (head.num_clusters, head.placement) == (3, "classifier")


def test_without_any_rows_nothing_is_assigned() -> None:
    readout = by_classifier()
    shard = readout.rows(raw_features(torch.empty(0, 2), []))
    assert shard.features.shape == (0, 3)
    assignments, distances = assign_everywhere(readout, shard, 2, Collectives())
    assert assignments.tolist() == [-1, -1]
    assert bool(distances.isnan().all())


def test_centroids_assign_the_nearest_ones_final_cluster_at_its_squared_distance() -> None:
    # Raw (4, 5) -> 2 ((4, 5) - (1, 1)) = (6, 8) -> (0.6, 0.8), nearest (0, 1): 0.36 + 0.04. Raw (0, 1) -> (-1, 0).
    readout = by_centroids()
    shard = readout.rows(raw_features(torch.tensor([[4.0, 5.0], [0.0, 1.0]]), [3, 0]))
    torch.testing.assert_close(shard.features, torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))
    assignments, distances = assign_everywhere(readout, shard, 4, Collectives())
    assert assignments.tolist() == [1, -1, -1, 0]
    assert distances[[3, 0]].tolist() == pytest.approx([0.4, 0.0], abs=1e-6)
    assert readout.num_clusters == 2


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a checkpoint."""
    flat = flatten(state)
    found: dict[str, Any] = unflatten(flat.tree, copy.deepcopy(flat.tensors), ())
    return found


@pytest.mark.parametrize("make", [by_classifier, by_centroids, Readout])
@pytest.mark.parametrize("before", [by_classifier, by_centroids, Readout])
def test_a_readout_survives_a_checkpoint_whatever_was_there_before(make: Any, before: Any) -> None:
    readout, other = make(), before()
    other.load_state_dict(stored(readout.state_dict()))
    assert (other.classifier is None, other.pca is None) == (readout.classifier is None, readout.pca is None)
    assert other.num_clusters == readout.num_clusters
    if readout.num_clusters:
        raw = raw_features(FEATURES, [0, 1, 2])
        expected = readout.assign(readout.rows(raw).features)
        torch.testing.assert_close(other.assign(other.rows(raw).features), expected, rtol=0, atol=0)
