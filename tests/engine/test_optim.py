"""Optimizers against torch's own, with state that is saved by name; learning rates by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.state_files import flatten, unflatten

CONSTANT = Schedule(0.1, "constant", 0, 100)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def optimizer(module: nn.Sequential, kind: str, schedule: Schedule = CONSTANT, **head: Any) -> Optimizer:
    groups = [{"params": list(module[0].parameters())}, {"params": list(module[2].parameters()), **head}]
    names = {parameter: name for name, parameter in module.named_parameters()}
    return Optimizer(groups, names, kind, momentum=0.9, weight_decay=0.01, schedule=schedule)


def backward(module: nn.Sequential, step: int) -> None:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    module(inputs).square().mean().backward()


def train(module: nn.Sequential, trained: Optimizer, steps: range) -> None:
    for step in steps:
        backward(module, step)
        trained.step(step)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("schedule", [CONSTANT, Schedule(0.1, "cosine", 3, 12)])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_agrees_with_torch(kind: str, schedule: Schedule) -> None:
    ours, theirs = network(), network()
    trained = optimizer(ours, kind, schedule, learning_rate_scale=10.0, momentum=0.0)
    groups: list[dict[str, Any]] = [{"params": theirs[0].parameters()}, {"params": theirs[2].parameters()}]
    if kind == "sgd":
        groups[1]["momentum"] = 0.0
        plain: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
    else:
        plain = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01)
    for step in range(8):
        backward(ours, step)
        assert trained.step(step) == schedule.at(step)
        backward(theirs, step)
        plain.param_groups[0]["lr"] = schedule.at(step)
        plain.param_groups[1]["lr"] = schedule.at(step) * 10
        plain.step()
        plain.zero_grad()
    assert_equal(ours, theirs)


def test_sgd_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(2.0)
    trained = Optimizer([{"params": [module.weight]}], {module.weight: "weight"}, "sgd", 0.5, 0.1, CONSTANT)
    velocity, weight = 0.0, 2.0
    for step in range(3):
        module(torch.ones(1, 1)).sum().backward()  # gradient 1
        trained.step(step)
        velocity = 0.5 * velocity + (1 + 0.1 * weight)
        weight -= 0.1 * velocity
        assert module.weight.item() == pytest.approx(weight, rel=1e-6)


def test_gradients_are_cleared_after_a_step() -> None:
    module = network()
    train(module, optimizer(module, "sgd"), range(1))
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("stopped_after", [0, 1, 4])
def test_going_on_from_a_state_is_bit_identical(kind: str, stopped_after: int) -> None:
    undisturbed = network()
    train(undisturbed, optimizer(undisturbed, kind), range(9))

    first = network()
    trained = optimizer(first, kind)
    train(first, trained, range(stopped_after))
    flat = flatten(trained.state_dict())  # as a checkpoint holds it: tensors apart from JSON values
    state = unflatten(flat.tree, copy.deepcopy(flat.tensors), ())
    weights = copy.deepcopy(first.state_dict())

    second = network()
    second.load_state_dict(weights)
    resumed = optimizer(second, kind)
    train(second, resumed, range(20, 22))  # whatever was there before is replaced
    second.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(second, resumed, range(stopped_after, 9))
    assert_equal(second, undisturbed)


def test_state_is_known_by_the_names_of_parameters() -> None:
    module = network()
    trained = optimizer(module, "sgd", momentum=0.0)
    assert trained.state_dict() == {}
    train(module, trained, range(1))
    assert set(trained.state_dict()) == {"0.weight", "0.bias"}, "without momentum a parameter has no state"
    assert set(trained.state_dict()["0.weight"]) == {"momentum_buffer"}
    trained = optimizer(module, "adamw")
    train(module, trained, range(1))
    assert set(trained.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_forgetting_makes_parameters_start_anew_and_no_others(kind: str) -> None:
    module, twin = network(), network()
    trained = optimizer(module, kind)
    train(module, trained, range(4))
    before = copy.deepcopy(trained.state_dict())
    trained.forget(list(module[2].parameters()))
    assert set(trained.state_dict()) == {"0.weight", "0.bias"}
    for name, state in trained.state_dict().items():
        for key, value in state.items():
            assert torch.equal(value, before[name][key])

    # The forgotten ones move as with an optimizer that has never seen them.
    twin.load_state_dict(module.state_dict())
    fresh = optimizer(twin, kind)
    train(module, trained, range(4, 5))
    train(twin, fresh, range(4, 5))
    assert torch.equal(module[2].weight, twin[2].weight)
    assert not torch.equal(module[0].weight, twin[0].weight)


def test_schedule_by_hand() -> None:
    constant = Schedule(0.4, "constant", 4, 100)
    assert [constant.at(step) for step in (0, 1, 2, 3, 4, 99)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    cosine = Schedule(0.4, "cosine", 2, 10)
    assert [cosine.at(step) for step in (0, 1, 2, 6)] == pytest.approx([0.2, 0.4, 0.4, 0.2])
    assert cosine.at(4) == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)) / 2)
    assert cosine.at(10) == pytest.approx(0.0, abs=1e-12)
    assert cosine.at(11) == pytest.approx(0.0, abs=1e-12), "a stage that runs longer does not rise again"


def test_a_schedule_shorter_than_its_warmup_only_rises() -> None:
    schedule = Schedule(1.0, "cosine", 10, 5)
    assert [schedule.at(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
