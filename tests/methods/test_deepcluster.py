"""DeepCluster: forward, loss, adoption of a clustering, and the plan of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.data.loader import Batch
from dcdist.data.transforms import View
from dcdist.methods.base import EpochLength, EpochPlan
from dcdist.methods.deepcluster import DeepCluster
from dcdist.models.backbone import Backbone

VIEW = View(size=2, crop="full")


def method(**arguments: Any) -> DeepCluster:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        top = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        length = EpochLength(4, arguments.pop("steps_per_epoch", None))
        defaults = {
            "backbone": Backbone(nn.Identity(), nn.Sequential(), top, 3, 3, features_before_relu=True),
            "num_clusters": (5,),
            "view": VIEW,
            "seed": 1,
            "length": length,
            "sampler": "uniform",
            "head_learning_rate_scale": 10.0,
            "head_momentum": 0.25,
        }
        return DeepCluster(**(defaults | arguments))


def head_clustering(assignments: list[int], num_clusters: int = 5) -> HeadClustering:
    ids = torch.tensor(assignments, dtype=torch.int32)
    return HeadClustering(ids, torch.zeros(len(ids)), torch.zeros(num_clusters, 3), 0.0, 1, 0, "rank0")


def clustering(assignments: list[int], num_clusters: int = 5) -> Clustering:
    return Clustering((head_clustering(assignments, num_clusters),))


def plan(deepcluster: DeepCluster, epoch: int, found: Clustering) -> EpochPlan:
    return deepcluster.plan_epoch(epoch, np.flatnonzero(found.heads[0].assignments.numpy() >= 0), found)


def microbatch(images: torch.Tensor, targets: torch.Tensor) -> dict[str, Batch]:
    ids = torch.arange(len(images))
    return {
        "clusters": Batch((images,), ids, targets.view(len(images), -1), torch.ones_like(ids, dtype=torch.bool), 0, ())
    }


def test_forward_classifies_after_the_relu_that_features_come_before() -> None:
    deepcluster = method()
    deepcluster.adopt(clustering([0, 1]), torch.Generator().manual_seed(0))
    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(6) % 5
    outputs = deepcluster(microbatch(images, targets))
    features = deepcluster.backbone(images)
    assert bool((features < 0).any())
    head = deepcluster.heads[0].linear
    torch.testing.assert_close(outputs.logits[0], features.clamp(min=0) @ head.weight.T + head.bias)
    assert torch.equal(outputs.targets[:, 0], targets)
    assert torch.equal(deepcluster.cluster_logits(images), outputs.logits[0])


def test_loss_is_the_mean_cross_entropy_in_full_precision() -> None:
    deepcluster = method()
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    outputs = deepcluster(microbatch(torch.zeros(2, 3, 2, 2), torch.tensor([1, 0])))._replace(logits=(logits,))
    e = np.exp
    by_hand = -(np.log(e(2) / (e(1) + e(2) + 1)) + np.log(1 / (2 + e(3)))) / 2
    (loss,) = deepcluster.losses(outputs).values()
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    (loss,) = deepcluster.losses(outputs._replace(logits=(logits.bfloat16(),))).values()
    assert loss.dtype == torch.float32
    assert deepcluster.couples_samples is False


def test_adopting_resets_the_head_in_place_and_names_it_for_the_optimizer() -> None:
    deepcluster = method()
    backbone = [parameter.clone() for parameter in deepcluster.backbone.parameters()]
    weight = deepcluster.heads[0].linear.weight
    forgotten = deepcluster.adopt(clustering([0, 1, 2], num_clusters=3), torch.Generator().manual_seed(4))
    assert {id(parameter) for parameter in forgotten} == {id(weight), id(deepcluster.heads[0].linear.bias)}
    assert deepcluster.heads[0].linear.weight is weight
    expected = torch.empty(5, 3).normal_(0, 0.01, generator=torch.Generator().manual_seed(4))
    assert torch.equal(weight, expected)
    assert deepcluster(microbatch(torch.zeros(1, 3, 2, 2), torch.tensor([0]))).logits[0].shape == (1, 3)
    for before, after in zip(backbone, deepcluster.backbone.parameters(), strict=True):
        assert torch.equal(before, after)


def stream_of(plan: EpochPlan) -> Any:
    (stream,) = plan.streams.values()
    return stream


@pytest.mark.parametrize(("num_assigned", "num_steps"), [(8, 2), (9, 3), (1, 1)])
def test_an_epoch_passes_once_over_as_many_images_as_are_assigned_in_whole_steps(
    num_assigned: int, num_steps: int
) -> None:
    planned = plan(method(), 0, clustering([index % 2 for index in range(num_assigned)] + [-1, -1, -1]))
    assert planned.num_steps == num_steps
    assert len(stream_of(planned).sample_ids) == len(stream_of(planned).targets) == 4 * num_steps


def test_an_epoch_may_have_a_fixed_number_of_steps() -> None:
    planned = plan(method(steps_per_epoch=7), 0, clustering([0, 1, 1]))
    assert planned.num_steps == 7
    assert len(stream_of(planned).sample_ids) == 28


def test_targets_are_the_clusters_of_the_drawn_images() -> None:
    assignments = [4, -1, 0, 0, 2, -1, 0, 0]
    stream = stream_of(plan(method(steps_per_epoch=9), 3, clustering(assignments)))
    assert stream.targets.dtype == np.int64
    assert stream.targets[:, 0].tolist() == [assignments[sample_id] for sample_id in stream.sample_ids]
    assert np.bincount(stream.targets[:, 0], minlength=5).tolist() == [12, 0, 12, 0, 12]
    assert stream.views == (VIEW,)


def test_the_plan_is_a_function_of_seed_epoch_and_clustering() -> None:
    found = clustering([index % 5 for index in range(100)])
    order = stream_of(plan(method(), 3, found)).sample_ids
    np.testing.assert_array_equal(stream_of(plan(method(), 3, found)).sample_ids, order)
    for other in (plan(method(), 4, found), plan(method(seed=2), 3, found)):
        assert (stream_of(other).sample_ids != order).mean() > 0.5


def test_the_reference_sampler_draws_by_mass() -> None:
    assignments = [0] * 50 + [1 + index % 5 for index in range(50)]
    found = clustering(np.random.default_rng(0).permutation(assignments).tolist(), num_clusters=6)
    shares = {
        sampler: (stream_of(plan(method(sampler=sampler, steps_per_epoch=500), 0, found)).targets == 0).mean()
        for sampler in ("uniform", "reference")
    }
    assert shares["uniform"] == pytest.approx(1 / 6, abs=1e-3)
    assert shares["reference"] > 0.4


def test_the_head_has_its_own_learning_rate_and_momentum() -> None:
    deepcluster = method()
    backbone, head = deepcluster.parameter_groups()
    assert [id(parameter) for parameter in backbone["params"]] == [id(p) for p in deepcluster.backbone.parameters()]
    assert set(backbone) == {"params"}
    assert [id(parameter) for parameter in head["params"]] == [id(p) for p in deepcluster.heads.parameters()]
    assert (head["learning_rate_scale"], head["momentum"]) == (10.0, 0.25)


def two_heads() -> Clustering:
    return Clustering((head_clustering([0, 0, 0, 1], 2), head_clustering([2, 0, 1, 1], 3)))


def test_every_head_has_its_share_of_the_draws_and_targets_for_all_of_them() -> None:
    found = two_heads()
    stream = stream_of(plan(method(num_clusters=(2, 3), steps_per_epoch=6), 0, found))
    first, second = stream.sample_ids[0::2], stream.sample_ids[1::2]
    assert np.bincount([[0, 0, 0, 1][i] for i in first]).tolist() == [6, 6]
    assert np.bincount([[2, 0, 1, 1][i] for i in second]).tolist() == [4, 4, 4]
    expected = np.array([[0, 2], [0, 0], [0, 1], [1, 1]])
    np.testing.assert_array_equal(stream.targets, expected[stream.sample_ids])


def test_the_loss_of_several_heads_is_their_mean_and_chance_is_the_mean_of_log_k() -> None:
    deepcluster = method(num_clusters=(2, 3))
    assert len(deepcluster.adopt(two_heads(), torch.Generator().manual_seed(0))) == 4
    outputs = deepcluster(microbatch(torch.zeros(1, 3, 2, 2), torch.tensor([[1, 2]])))
    zeros = (torch.zeros(1, 2), torch.zeros(1, 3))
    (loss,) = deepcluster.losses(outputs._replace(logits=zeros)).values()
    assert float(loss) == pytest.approx((np.log(2) + np.log(3)) / 2)
    assert deepcluster.chance_losses() == {"clusters": pytest.approx((np.log(2) + np.log(3)) / 2)}
