"""What a step computes does not depend on how many processes share its microbatches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dcdist.data.loader import Batch
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.training_step import TrainingStep
from dcdist.methods.base import EpochLength
from dcdist.methods.deepcluster import DeepCluster
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics
from tests.distributed.processes import run_processes

NUM_MICROBATCHES = 6
MICROBATCH_SIZE = 8
FP32 = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)


def _method() -> DeepCluster:
    torch.manual_seed(7)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    top = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 16, 16))
    return DeepCluster(
        Backbone(nn.Identity(), body, top, 8, 16, features_before_relu=True),
        num_clusters=(5,),
        view=View(size=8, crop="full"),
        seed=1,
        length=EpochLength(NUM_MICROBATCHES * MICROBATCH_SIZE, None),
        sampler="uniform",
        head_learning_rate_scale=1.0,
        head_momentum=0.0,
    )


def _microbatch(step: int, number: int) -> dict[str, Batch]:
    generator = torch.Generator().manual_seed(100 * step + number)
    images = torch.randn(MICROBATCH_SIZE, 3, 8, 8, generator=generator) + number
    targets = torch.randint(0, 5, (MICROBATCH_SIZE, 1), generator=generator)
    ids = torch.arange(MICROBATCH_SIZE)
    return {"clusters": Batch((images,), ids, targets, torch.ones_like(ids, dtype=torch.bool), 0, ())}


def train(collectives: Collectives, num_steps: int, kind: str) -> dict[str, Any]:
    method = _method()
    optimizer = Optimizer(
        method.parameter_groups(),
        {parameter: name for name, parameter in method.named_parameters()},
        kind,
        0.9,
        1e-4,
        Schedule(0.05 if kind == "sgd" else 1e-3, "constant", 0, num_steps),
    )
    training_step = TrainingStep(method, optimizer, FP32, collectives, NUM_MICROBATCHES)
    own = training_step.own_microbatches()
    loss = 0.0
    for step in range(num_steps):
        seeds = [1000 * step + n for n in own]
        sums, _ = training_step([_microbatch(step, n) for n in own], seeds, step, measured=step + 1 == num_steps)
        assert (sums.gradient_norm is not None) == (step + 1 == num_steps)
        loss = float(collectives.all_reduce_sum(sums.losses["clusters"].double().reshape(1))) / NUM_MICROBATCHES
    state = {name: value.numpy() for name, value in method.state_dict().items()}
    return {"state": state, "loss": loss, "norm": float(sums.gradient_norm)}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_weights_and_running_statistics_agree_with_one_process(world_size: int, kind: str) -> None:
    alone = train(Collectives(), 3, kind)
    together = run_processes(train, world_size, 3, kind)
    for rank in range(world_size):
        assert together[rank]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together[rank]["norm"] == pytest.approx(alone["norm"], rel=1e-5)
        for name, value in alone["state"].items():
            np.testing.assert_allclose(together[rank]["state"][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(together[rank]["state"][name], together[0]["state"][name], err_msg=name)


def test_running_statistics_are_the_average_over_the_microbatches_of_a_step() -> None:
    method = _method()
    convolution = method.backbone.body[0]
    means, variances = [], []
    for number in range(NUM_MICROBATCHES):
        (images,) = _microbatch(0, number)["clusters"].views
        outputs = convolution(images).detach()
        means.append(outputs.mean((0, 2, 3)))
        variances.append(outputs.var((0, 2, 3)))
    state = train(Collectives(), 1, "sgd")["state"]
    expected_mean = 0.9 * 0.0 + 0.1 * torch.stack(means).mean(0)
    expected_variance = 0.9 * 1.0 + 0.1 * torch.stack(variances).mean(0)
    np.testing.assert_allclose(state["backbone.body.1.running_mean"], expected_mean, rtol=1e-5)
    np.testing.assert_allclose(state["backbone.body.1.running_var"], expected_variance, rtol=1e-5)


def test_gradient_is_that_of_the_mean_loss_over_the_step() -> None:
    reference = _method()
    loss = 0.0
    for number in range(NUM_MICROBATCHES):
        torch.manual_seed(number)
        outputs = reference(_microbatch(0, number))
        loss = loss + functional.cross_entropy(outputs.logits[0], outputs.targets[:, 0]) / NUM_MICROBATCHES
    loss.backward()
    before = _method().heads[0].linear.weight.detach()
    expected = before - 0.05 * (reference.heads[0].linear.weight.grad + 1e-4 * before)
    trained = train(Collectives(), 1, "sgd")
    np.testing.assert_allclose(trained["state"]["heads.0.linear.weight"], expected.detach(), rtol=1e-5, atol=1e-7)
    norm = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()]).norm()
    assert trained["norm"] == pytest.approx(float(norm), rel=1e-5)
