"""Progress and the adopted clustering: what they hold survives a checkpoint."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from dcdist.clustering.pca import PCA
from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.engine.state import AdoptedClustering, Progress
from dcdist.engine.state_files import flatten, unflatten


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
