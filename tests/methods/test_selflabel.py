"""Self-labelling by hand: which images are confident, how they weigh, averages of weights, steps without any."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dcdist.methods.scan import Scan
from dcdist.methods.selflabel import Outputs, SelfLabel
from tests.methods.small_methods import NUM_SAMPLES, microbatch, small_method
from tests.methods.training import optimizer_of, steps


def selflabel(num_clusters: int = 4, **changes: Any) -> SelfLabel:
    method = small_method("selflabel", selflabel=changes, scan={"num_clusters": num_clusters})
    assert isinstance(method, SelfLabel)
    return method


# Confident above 0.9: the samples 1, 3 and 4, with the labels 0, 1 and 0.
WEAK = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.2, 0.8], [0.01, 0.99], [0.91, 0.09]]).log() + 1.0
STRONG = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3]]).log()


def loss_of(outputs: Outputs, **changes: Any) -> float:
    (loss,) = selflabel(2, threshold=0.9, **changes).losses(outputs).values()
    return float(loss)


def test_loss_is_the_cross_entropy_of_the_confident_images_alone() -> None:
    # 0.9 itself is not above the threshold.
    by_hand = -(math.log(0.6) + math.log(0.8) + math.log(0.7)) / 3
    assert loss_of(Outputs(WEAK, STRONG), class_balancing=False) == pytest.approx(by_hand, rel=1e-5)


def test_class_balancing_weighs_by_the_number_of_confident_images_over_that_of_the_class() -> None:
    # 3 confident images: the two of class 0 weigh 3/2, that of class 1 weighs 3; the sum of weights is 6.
    by_hand = -(1.5 * math.log(0.6) + 3.0 * math.log(0.8) + 1.5 * math.log(0.7)) / 6
    loss = loss_of(Outputs(WEAK, STRONG), class_balancing=True)
    assert loss == pytest.approx(by_hand, rel=1e-5)
    confident, labels = torch.tensor([1, 3, 4]), torch.tensor([0, 1, 0])
    weighted = functional.cross_entropy(STRONG[confident], labels, weight=torch.tensor([3 / 2, 3 / 1]))
    assert loss == pytest.approx(float(weighted), rel=1e-6)


def test_a_network_of_nan_is_an_error_and_no_empty_confident_set() -> None:
    broken = torch.full((5, 2), math.nan)
    assert math.isnan(loss_of(Outputs(broken, broken)))


def test_classes_that_nobody_is_confident_of_change_nothing() -> None:
    weak = torch.cat([WEAK, torch.full((5, 2), -50.0)], dim=1)
    strong = torch.cat([STRONG, torch.full((5, 2), -50.0)], dim=1)
    (loss,) = selflabel(4, threshold=0.9).losses(Outputs(weak, strong)).values()
    assert float(loss) == pytest.approx(loss_of(Outputs(WEAK, STRONG)), rel=1e-5)


def test_the_strong_view_learns_and_the_weak_one_gets_no_gradient() -> None:
    outputs = selflabel(threshold=0.25)(microbatch("selflabel", 0))
    assert not outputs.weak.requires_grad
    assert outputs.strong.requires_grad
    assert outputs.weak.shape == outputs.strong.shape == (8, 4)


def test_weak_and_strong_are_the_first_and_the_second_view() -> None:
    method = selflabel().eval()
    batch = microbatch("selflabel", 0)
    for found, images in zip(method(batch), batch["images"].views, strict=True):
        torch.testing.assert_close(found, method.heads(method.backbone(images))[:, 0])
    weak, strong = method.plan_epoch(0, np.arange(NUM_SAMPLES), None).streams["images"].views
    assert (weak.crop, weak.horizontal_flip, weak.strong) == ("center", False, None)
    assert strong.crop == "random_resized"


@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_weight_gets_a_gradient_in_either_precision(bfloat16: bool) -> None:
    # Labels are computed first and without gradient; autocast must not reuse those casts of the weights.
    method = selflabel(threshold=0.25, ema_decay=None)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = method(microbatch("selflabel", 0))
    (loss,) = method.losses(outputs).values()
    loss.backward()
    assert loss.dtype == torch.float32
    missing = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert missing == []


def test_figures_by_hand() -> None:
    figures = selflabel(2, threshold=0.9).figures(Outputs(WEAK, STRONG))
    mean = [(0.9 + 0.95 + 0.2 + 0.01 + 0.91) / 5, (0.1 + 0.05 + 0.8 + 0.99 + 0.09) / 5]
    usage = -sum(p * math.log(p) for p in mean) / math.log(2)
    by_hand = {"confident_ratio": 3 / 5, "skipped_ratio": 0.0, "usage_entropy_ratio": usage}
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_step_without_a_confident_image_updates_nothing(kind: str, ema_decay: float | None) -> None:
    method = selflabel(threshold=0.25, ema_decay=ema_decay)
    optimizer = optimizer_of(method, kind)
    weights: dict[str, torch.Tensor] = {}
    moments: dict[str, Any] = {}
    for number, sums in enumerate(steps(method, "selflabel", 3, optimizer)):
        learnt = {name: parameter for name, parameter in method.named_parameters() if not name.startswith("averages")}
        if number == 1:
            assert sums.losses == {}
            assert float(sums.figures["skipped_ratio"]) == 2.0  # a sum over the 2 microbatches
            assert float(sums.figures["confident_ratio"]) == 0.0
            assert all(torch.equal(parameter, weights[name]) for name, parameter in learnt.items())
            torch.testing.assert_close(optimizer.state_dict(), moments, rtol=0, atol=0)
        else:
            assert float(sums.figures["skipped_ratio"]) == 0.0
            assert not any(
                torch.equal(parameter, weights.get(name, torch.empty(0))) for name, parameter in learnt.items()
            )
        weights = {name: parameter.detach().clone() for name, parameter in learnt.items()}
        moments = copy.deepcopy(optimizer.state_dict())
        method.threshold = 1.0 if number == 0 else 0.25  # no probability is above 1


def test_weights_become_their_moving_average_by_hand() -> None:
    averaged, plain = selflabel(ema_decay=0.75), selflabel(ema_decay=None)
    before = averaged.heads.linear.weight.detach().clone()
    for method in (averaged, plain):
        list(steps(method, "selflabel", 1))
    updated = plain.heads.linear.weight.detach()
    assert not torch.equal(updated, before)
    torch.testing.assert_close(averaged.heads.linear.weight.detach(), 0.75 * before + 0.25 * updated)
    assert torch.equal(averaged.averages[-2], averaged.heads.linear.weight)
    # The next step starts from the average.
    with torch.no_grad():
        averaged.heads.linear.weight.add_(1.0)
    averaged.after_step(None)
    torch.testing.assert_close(averaged.heads.linear.weight.detach(), 0.75 * before + 0.25 * updated + 0.25)


def test_averages_are_state_and_do_not_learn() -> None:
    method = selflabel(ema_decay=0.5)
    learning = {id(parameter) for group in method.parameter_groups() for parameter in group["params"]}
    assert not learning & {id(average) for average in method.averages}
    list(steps(method, "selflabel", 2))
    other = selflabel(ema_decay=0.5)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for average, parameter in zip(other.averages, other._learning(), strict=True):
        assert torch.equal(average, parameter)


def scan(**changes: Any) -> Scan:
    method = small_method("scan", scan=changes)
    assert isinstance(method, Scan)
    return method


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_stage_begins_with_the_classifier_of_the_one_before(ema_decay: float | None) -> None:
    previous = scan(num_heads=3)
    previous.after_step(torch.tensor([0.0, -1.0, 0.0]))
    method = selflabel(ema_decay=ema_decay)
    with torch.no_grad():
        method.backbone.body[0][0].weight.mul_(2.0)  # since it was built, the stage before has trained
    method.begin(previous.classifier())
    assert torch.equal(method.heads.linear.weight, previous.heads.linear.weight[4:8])
    assert torch.equal(method.heads.linear.bias, previous.heads.linear.bias[4:8])
    assert torch.equal(method.classifier().weight, previous.classifier().weight)
    if ema_decay:
        for average, parameter in zip(method.averages, method._learning(), strict=True):
            assert torch.equal(average, parameter)
            assert average.data_ptr() != parameter.data_ptr()


def test_running_statistics_are_those_of_weak_views_alone() -> None:
    method, reference = selflabel(), selflabel()
    batch = microbatch("selflabel", 0)
    weak, strong = batch["images"].views
    method(batch)
    reference.backbone(weak)
    statistics = {name: value for name, value in method.state_dict().items() if "running" in name}
    assert len(statistics) == 8
    for name, value in statistics.items():
        assert torch.equal(value, reference.state_dict()[name])
    # The strong view is normalised by its own statistics none the less.
    fresh = selflabel()
    torch.testing.assert_close(method(batch).strong, fresh.heads(fresh.backbone(strong))[:, 0])
