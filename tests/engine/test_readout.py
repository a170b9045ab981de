"""The read-out: a classifier's clusters and probabilities, or nearest centroids and what they are merged to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcdist.clustering.pca import PCA
from dcdist.clustering.types import Clustering, FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator
from dcdist.engine.readout import Readout, ReadoutRecipe, assign_everywhere
from dcdist.engine.state_files import flatten, unflatten
from dcdist.features import RawFeatures
from dcdist.models.heads import Classifier

# Logits of features (x, y) after the ReLU: log 2 + x, y, 0.
WEIGHT, BIAS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([math.log(2.0), 0.0, 0.0])
FEATURES = torch.tensor([[0.0, -5.0], [0.0, 4.0], [-3.0, 0.5]])  # (0, 0), (0, 4) and (0, 0.5) after the ReLU
SUMS = [2 + 1 + 1, 2 + math.exp(4) + 1, 2 + math.exp(0.5) + 1]
PROBABILITIES = [2 / SUMS[0], math.exp(4) / SUMS[1], 2 / SUMS[2]]
TRANSFORM = PCA(torch.ones(2), 2 * torch.eye(2), torch.tensor([2.0, 1.0], dtype=torch.float64), 2)


def by_classifier() -> Readout:
    readout = Readout()
    readout.classifier = Classifier(WEIGHT, BIAS, relu_first=True)
    readout.merged_to = torch.arange(3, dtype=torch.int32)
    return readout


def by_classifier_of_rows() -> Readout:
    """As a clusterer gives it that decides by linear functions of the reduced rows."""
    readout = by_classifier()
    readout.classifier = Classifier(WEIGHT, BIAS, relu_first=False)
    readout.classifies_rows = True
    readout.pca = TRANSFORM
    return readout


def by_centroids() -> Readout:
    readout = Readout()
    readout.pca = TRANSFORM
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


def test_without_any_rows_nothing_is_assigned() -> None:
    readout = by_classifier()
    shard = readout.rows(raw_features(torch.empty(0, 2), []))
    assert len(shard.features) == 0
    assignments, distances = assign_everywhere(readout, shard, 2, Collectives())
    assert assignments.tolist() == [-1, -1]
    assert bool(distances.isnan().all())


# Raw (4, 5) -> 2 ((4, 5) - (1, 1)) = (6, 8) -> (0.6, 0.8); raw (0, 1) -> (-2, 0) -> (-1, 0).
RAW, ROWS = torch.tensor([[4.0, 5.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [-1.0, 0.0]])


def test_centroids_assign_the_nearest_ones_final_cluster_at_its_squared_distance() -> None:
    # (0.6, 0.8) is nearest to (0, 1), the second, at 0.36 + 0.04; (-1, 0) to the third.
    readout = by_centroids()
    shard = readout.rows(raw_features(RAW, [3, 0]))
    torch.testing.assert_close(shard.features, ROWS)
    assignments, distances = assign_everywhere(readout, shard, 4, Collectives())
    assert assignments.tolist() == [1, -1, -1, 0]
    assert distances[[3, 0]].tolist() == pytest.approx([0.4, 0.0], abs=1e-6)
    assert readout.num_clusters == 2


def test_a_classifier_of_reduced_rows_sees_them_as_the_transform_makes_them_and_is_merged() -> None:
    # Logits (log 2 + 0.6, 0.8, 0) and (log 2 - 1, 0, 0).
    readout = by_classifier_of_rows()
    readout.merged_to = torch.tensor([1, 0, 1], dtype=torch.int32)
    shard = readout.rows(raw_features(RAW, [3, 0]))
    torch.testing.assert_close(shard.features, ROWS)
    clusters, distances = readout.assign(shard.features)
    assert clusters.tolist() == [1, 0]
    first = 2 * math.exp(0.6) / (2 * math.exp(0.6) + math.exp(0.8) + 1)
    second = 1 / (2 * math.exp(-1) + 1 + 1)
    assert distances.tolist() == pytest.approx([1 - first, 1 - second], rel=1e-5)


def test_a_classifier_of_reduced_rows_is_one_of_features_where_rows_have_the_usual_length() -> None:
    # The root mean square length is sqrt(4 2 + 4 1) = sqrt 12: (4, 5) is reduced to (6, 8) of length 10.
    readout = by_classifier_of_rows()
    classifier = readout.on_features()
    assert classifier is not None
    usual = math.sqrt(12)
    by_hand = [math.log(2) + 6 / usual, 8 / usual, 0.0]
    assert classifier.logits(RAW[:1])[0].tolist() == pytest.approx(by_hand, abs=1e-6)
    as_long_as_usual = 1.0 + torch.tensor([[0.6, 0.8], [0.0, -1.0]]) * usual / 2
    expected, _ = readout.assign(readout.rows(raw_features(as_long_as_usual, [0, 1])).features)
    assert classifier.logits(as_long_as_usual).argmax(1).tolist() == expected.tolist()


def test_only_a_linear_read_out_is_a_classifier_of_features() -> None:
    assert by_classifier().on_features() is not None
    assert by_centroids().on_features() is None
    merged, unreduced = by_classifier_of_rows(), by_classifier_of_rows()
    merged.merged_to = torch.tensor([1, 0, 1], dtype=torch.int32)
    unreduced.pca = None
    assert merged.on_features() is None
    assert unreduced.on_features() is None


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a checkpoint."""
    flat = flatten(state)
    found: dict[str, Any] = unflatten(flat.tree, copy.deepcopy(flat.tensors), ())
    return found


KINDS = [by_classifier, by_classifier_of_rows, by_centroids, Readout]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_a_readout_survives_a_checkpoint_whatever_was_there_before(
    make: Callable[[], Readout], before: Callable[[], Readout]
) -> None:
    readout, other = make(), before()
    other.load_state_dict(stored(readout.state_dict()))
    assert (other.classifier is None, other.pca is None) == (readout.classifier is None, readout.pca is None)
    assert other.num_clusters == readout.num_clusters
    if readout.num_clusters:
        raw = raw_features(FEATURES, [0, 1, 2])
        expected = readout.assign(readout.rows(raw).features)
        torch.testing.assert_close(other.assign(other.rows(raw).features), expected, rtol=0, atol=0)


class Quarters:
    """Puts rows into the quarter of the circle that they point to; the objective falls with each call, then rises."""

    least_rows = 4

    def __init__(self, objectives: list[float]) -> None:
        self.objectives = objectives
        self.draws: list[float] = []

    def fit(
        self,
        shard: FeatureShard,
        num_samples: int,
        collectives: Collectives,  # noqa: ARG002
        generator: torch.Generator,
        at_boundary: Callable[[], None] = lambda: None,
    ) -> HeadClustering:
        self.draws.append(float(torch.rand((), generator=generator)))
        number = len(self.draws) - 1
        at_boundary()
        # Turned a little by each run, so that it can be told which of them was kept.
        angles = torch.tensor([45.0, 135.0, 225.0, 315.0]).deg2rad() + 0.01 * number
        centroids = torch.stack([angles.cos(), angles.sin()], dim=1)
        assignments = torch.full((num_samples,), -1, dtype=torch.int32)
        assignments[shard.sample_ids] = torch.cdist(shard.features, centroids).argmin(1).int()
        nothing = torch.zeros(num_samples)
        return HeadClustering(assignments, nothing, centroids, self.objectives[number], 1, 1, "rank0")


def read_out(
    monkeypatch: pytest.MonkeyPatch,
    readout: Readout,
    raw: RawFeatures,
    clusterer: Quarters,
    classifier: Classifier | None = None,
    merge_to: int | None = None,
) -> Clustering:
    """Of six samples, by a method that has or has not a classifier; nothing is reduced."""
    monkeypatch.setattr("dcdist.engine.readout.extract_features", lambda *arguments: raw)  # noqa: ARG005
    method: Any = SimpleNamespace(backbone=None, classifier=lambda: classifier)
    recipe = ReadoutRecipe(clusterer, merge_to, None, False, 1e-3, len(clusterer.objectives))
    nothing: Any = None
    return recipe.read_out(readout, method, range(6), nothing, Collectives(), 7, lambda: None)  # type: ignore[arg-type]


def test_a_method_with_a_classifier_is_read_out_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    readout, clusterer = by_centroids(), Quarters([1.0])
    raw = raw_features(FEATURES, [1, 2, 5])
    (head,) = read_out(monkeypatch, readout, raw, clusterer, Classifier(WEIGHT, BIAS, relu_first=True)).heads
    assert clusterer.draws == [], "nothing is clustered"
    assert head.assignments.tolist() == [-1, 0, 1, -1, -1, 0]
    assert head.distances.isnan().tolist() == [True, False, False, True, True, False]
    assert head.objective == pytest.approx(1 - sum(PROBABILITIES) / 3, rel=1e-5)
    assert (head.num_clusters, head.placement, readout.num_clusters) == (3, "classifier", 3)


# Three rows in the first quarter, one each in the second and the third; sample 4 does not decode.
CIRCLE = torch.tensor([[1.0, 1.0], [3.0, 4.0], [-1.0, 1.0], [4.0, 3.0], [-1.0, -1.0]])


def test_of_several_runs_that_of_the_lowest_objective_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    readout, clusterer = by_classifier(), Quarters([0.5, 0.2, 0.4])
    (head,) = read_out(monkeypatch, readout, raw_features(CIRCLE, [0, 1, 2, 3, 5]), clusterer).heads
    assert readout.classifier is None, "a stage before this one had it"
    assert clusterer.draws == [float(torch.rand((), generator=torch_generator(7, "readout", n))) for n in range(3)]
    angle = math.radians(45) + 0.01
    assert readout.centroids[0].tolist() == pytest.approx([math.cos(angle), math.sin(angle)])
    assert head.assignments.tolist() == [0, 0, 1, 0, -1, 2]
    assert float(head.distances[0]) == pytest.approx(4 * math.sin(0.005) ** 2, rel=1e-3)  # a chord of 0.01 radians
    assert (readout.num_clusters, head.num_empty_repaired) == (4, 1)


def test_clusters_are_merged_and_new_images_go_where_theirs_went(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ward joins the empty fourth quarter to a neighbour for nothing, then the two quarters of one row each.
    readout = Readout()
    raw = raw_features(CIRCLE, [0, 1, 2, 3, 5])
    (head,) = read_out(monkeypatch, readout, raw, Quarters([0.5]), merge_to=2).heads
    assert head.assignments.tolist() == [0, 0, 1, 0, -1, 1]
    assert head.num_empty_repaired == 0, "of the two that are left none was refilled"
    assert readout.merged_to[:3].tolist() == [0, 1, 1]
    # The centroid of a merged cluster is the mean over members: (-1, 1) and (-1, -1), each scaled to length 1.
    assert head.centroids[1].tolist() == pytest.approx([-math.sqrt(0.5), 0.0], abs=1e-6)
    clusters, _ = readout.assign(readout.rows(raw_features(torch.tensor([[-5.0, 0.1]]), [0])).features)
    assert clusters.tolist() == [1]
