"""What a run's state holds beside the optimizer survives a checkpoint: progress, clusters, weights, what decodes."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from dcdist.clustering.pca import PCA
from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.engine.state import AdoptedClustering, Decodability, MethodState, Progress
from dcdist.engine.state_files import flatten, unflatten
from tests.methods.small_methods import STREAMS, small_method
from tests.methods.training import steps


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a checkpoint."""
    flat = flatten(state)
    found: dict[str, Any] = unflatten(flat.tree, copy.deepcopy(flat.tensors), ())
    return found


def test_progress_counts_steps_of_epoch_stage_and_run() -> None:
    progress = Progress()
    progress.begin_stage("first")
    for _ in range(3):
        progress.advance_step()
    progress.advance_epoch()
    progress.advance_step()
    assert progress == Progress(stage="first", epoch=1, step_in_epoch=1, step=4, step_in_stage=4)


def test_a_stage_begins_anew_but_for_the_steps_of_the_run() -> None:
    progress = Progress(
        "first", epoch=5, step_in_epoch=2, step=40, step_in_stage=30, clustered_epoch=4, stage_done=True
    )
    progress.begin_stage("second")
    assert progress == Progress(stage="second", step=40)
    assert (progress.clustered_epoch, progress.stage_done) == (-1, False)


def test_progress_survives_a_checkpoint() -> None:
    progress = Progress(
        "first", epoch=5, step_in_epoch=2, step=40, step_in_stage=30, clustered_epoch=4, stage_done=True
    )
    other = Progress("other", epoch=1)
    other.load_state_dict(stored(progress.state_dict()))
    assert other == progress


def clustering() -> Clustering:
    head = HeadClustering(
        assignments=torch.tensor([0, -1, 1], dtype=torch.int32),
        distances=torch.tensor([0.5, math.nan, 0.25]),
        centroids=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        objective=0.375,
        num_iterations=7,
        num_empty_repaired=1,
        placement="distributed",
        seconds={"assign": 0.5},
    )
    return Clustering((head, head))


def test_the_adopted_clustering_survives_a_checkpoint() -> None:
    pca = PCA(torch.ones(3), torch.eye(3)[:, :2], torch.tensor([2.0, 1.0], dtype=torch.float64), 2)
    adopted = AdoptedClustering()
    adopted.set(clustering(), pca)
    adopted.heldout_targets = torch.tensor([1, 0], dtype=torch.int32)
    other = AdoptedClustering()
    other.load_state_dict(stored(adopted.state_dict()))

    assert other.clustering is not None
    assert len(other.clustering.heads) == 2
    for before, after in zip(clustering().heads, other.clustering.heads, strict=True):
        assert torch.equal(after.assignments, before.assignments)
        assert after.assignments.dtype == torch.int32
        torch.testing.assert_close(after.distances, before.distances, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(after.centroids, before.centroids)
        assert (after.objective, after.num_iterations, after.num_empty_repaired) == (0.375, 7, 1)
        assert (after.placement, after.seconds, after.num_clusters) == ("distributed", {"assign": 0.5}, 2)
    assert other.pca is not None
    assert torch.equal(other.pca.projection, pca.projection)
    assert torch.equal(other.pca.eigenvalues, pca.eigenvalues)
    assert other.pca.numerical_rank == 2
    assert other.heldout_targets is not None
    assert other.heldout_targets.tolist() == [1, 0]


def test_nothing_adopted_survives_a_checkpoint_too() -> None:
    adopted = AdoptedClustering()
    adopted.set(clustering(), None)
    adopted.load_state_dict(stored(AdoptedClustering().state_dict()))
    assert (adopted.clustering, adopted.pca, adopted.heldout_targets) == (None, None, None)


def test_a_clustering_without_pca_and_held_out_images() -> None:
    adopted, other = AdoptedClustering(), AdoptedClustering()
    adopted.set(clustering(), None)
    other.load_state_dict(stored(adopted.state_dict()))
    assert other.clustering is not None
    assert (other.pca, other.heldout_targets) == (None, None)
    adopted.clear()
    assert adopted.clustering is None


def test_adopted_neighbours_survive_a_checkpoint() -> None:
    adopted, other = AdoptedClustering(), AdoptedClustering()
    adopted.set(Clustering((), torch.tensor([[1, 2], [-1, -1], [1, 0]])), None)
    other.load_state_dict(stored(adopted.state_dict()))
    assert other.clustering is not None
    assert other.clustering.heads == ()
    assert other.clustering.neighbors is not None
    assert other.clustering.neighbors.tolist() == [[1, 2], [-1, -1], [1, 0]]


def test_usable_are_the_images_that_decode() -> None:
    decodability = Decodability()
    decodability.undecodable = [1, 4]
    usable = decodability.usable(6)
    assert usable.tolist() == [0, 2, 3, 5]
    assert usable.dtype == np.int64
    decodability.undecodable = []
    assert decodability.usable(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("undecodable", [None, [], [1, 4]])
def test_what_decodes_survives_a_checkpoint(undecodable: list[int] | None) -> None:
    decodability, other = Decodability(), Decodability()
    decodability.undecodable, other.undecodable = undecodable, [7]
    other.load_state_dict(stored(decodability.state_dict()))
    assert other.undecodable == undecodable


def test_a_backbone_that_several_parts_share_is_stored_once_under_its_own_name() -> None:
    method = small_method("joint")
    everything, state = method.state_dict(), MethodState(method).state_dict()
    backbone = {name for name in state if "backbone." in name}
    assert backbone == {f"backbone.{name}" for name in method.backbone.state_dict()}
    copies = {name for name in everything if ".backbone." in name}
    assert len(copies) == 3 * len(backbone)
    assert state.keys() == everything.keys() - copies


@pytest.mark.parametrize("name", STREAMS)
def test_a_method_comes_back_from_a_checkpoint_bit_by_bit(name: str) -> None:
    method = small_method(name)
    list(steps(method, name, 2))
    state = stored(dict(MethodState(method).state_dict()))
    other = small_method(name)
    MethodState(other).load_state_dict(state)
    found = other.state_dict()
    for key, value in method.state_dict().items():
        assert torch.equal(found[key], value), key
    for module in other.modules():
        assert getattr(module, "backbone", other.backbone) is other.backbone


def test_a_state_that_lacks_something_is_refused() -> None:
    method = small_method("joint")
    state = MethodState(method).state_dict()
    del state["backbone.body.conv1.0.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone\.body\.conv1\.0\.weight"):
        MethodState(small_method("joint")).load_state_dict(state)
