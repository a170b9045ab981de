"""Optimizers against torch's own, with state that is saved by name; learning rates by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from dcdist.engine.optim import Larc, Optimizer, Schedule
from dcdist.engine.state_files import flatten, unflatten

CONSTANT = Schedule(0.1, "constant", 0, 100)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def optimizer(
    module: nn.Sequential, kind: str, schedule: Schedule = CONSTANT, plain_vectors: bool = False, **head: Any
) -> Optimizer:
    groups = [{"params": list(module[0].parameters())}, {"params": list(module[2].parameters()), **head}]
    names = {parameter: name for name, parameter in module.named_parameters()}
    return Optimizer(
        groups, names, kind, momentum=0.9, weight_decay=0.01, schedule=schedule, plain_vectors=plain_vectors
    )


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
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_agrees_with_torch(kind: str, schedule: Schedule) -> None:
    ours, theirs = network(), network()
    trained = optimizer(ours, kind, schedule, learning_rate_scale=10.0, momentum=0.0)
    groups: list[dict[str, Any]] = [{"params": theirs[0].parameters()}, {"params": theirs[2].parameters()}]
    if kind == "sgd":
        groups[1]["momentum"] = 0.0
        plain: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
    else:
        plain = (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)(groups, lr=0.1, weight_decay=0.01)
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


def test_cosine_ends_at_its_final_ratio_by_hand() -> None:
    cosine = Schedule(4.8, "cosine", 2, 10, final_ratio=0.001)
    assert [cosine.at(step) for step in (2, 6, 10, 30)] == pytest.approx([4.8, 0.5 * (4.8 + 0.0048), 0.0048, 0.0048])
    assert cosine.at(4) == pytest.approx(0.0048 + (4.8 - 0.0048) * (1 + math.cos(math.pi / 4)) / 2)


def test_warmup_rises_from_its_ratio_by_hand() -> None:
    schedule = Schedule(4.0, "constant", 4, 10, warmup_ratio=0.2)
    assert [schedule.at(step) for step in range(6)] == pytest.approx([1.6, 2.4, 3.2, 4.0, 4.0, 4.0])


def test_steps_divide_by_ten_by_hand() -> None:
    schedule = Schedule(1.0, "steps", 2, 10, decay_steps=(4, 7))
    rates = [schedule.at(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert Schedule(1.0, "steps", 0, 10).at(9) == 1.0


def parameter(weight: list[float], gradient: list[float] | None) -> nn.Parameter:
    found = nn.Parameter(torch.tensor(weight))
    found.grad = None if gradient is None else torch.tensor(gradient)
    return found


def test_larc_scales_each_gradient_by_hand() -> None:
    # |w| = 5, |g| = 2: the rate is 0.001 * 5 / (2 + 0.1 * 5) = 0.002, the gradient with its decay (1.5, 2).
    first = parameter([3.0, 4.0], [1.2, 1.6])
    # |w| = 13, |g| = 26: the rate is 0.013 / 27.3.
    second = parameter([5.0, 12.0], [-10.0, 24.0])
    Larc().adapt([first, second], weight_decay=0.1, learning_rate=1.0)
    assert first.grad is not None
    assert first.grad.tolist() == pytest.approx([0.002 * 1.5, 0.002 * 2.0], rel=1e-6)
    assert second.grad is not None
    assert second.grad.tolist() == pytest.approx([0.013 / 27.3 * -9.5, 0.013 / 27.3 * 25.2], rel=1e-6)


def test_larc_that_clips_never_updates_by_more_than_sgd_by_hand() -> None:
    # |w| = 5, |g| = 2: the share is 0.02 * 5 / 2.5 = 0.04, at a learning rate of 0.6 a fifteenth of SGD's.
    small = parameter([3.0, 4.0], [1.2, 1.6])
    Larc(trust=0.02, clip=True).adapt([small], weight_decay=0.1, learning_rate=0.6)
    assert small.grad is not None
    assert small.grad.tolist() == pytest.approx([1.5 / 15, 2.0 / 15], rel=1e-6)
    # At 0.01 SGD is the smaller one: the gradient with its decay.
    clipped = parameter([3.0, 4.0], [1.2, 1.6])
    Larc(trust=0.02, clip=True).adapt([clipped], weight_decay=0.1, learning_rate=0.01)
    assert clipped.grad is not None
    assert clipped.grad.tolist() == pytest.approx([1.5, 2.0], rel=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "larc", "adam", "adamw"])
def test_plain_vectors_have_neither_weight_decay_nor_larc(kind: str) -> None:
    def after_one_step(plain_vectors: bool, weight_decay: float, by: str = kind) -> nn.Sequential:
        module = network()
        for one in (0, 2):
            nn.init.constant_(module[one].bias, 0.5)
        names = {parameter: name for name, parameter in module.named_parameters()}
        groups = [{"params": list(module.parameters()), "learning_rate_scale": 2.0}]
        train(module, Optimizer(groups, names, by, 0.9, weight_decay, CONSTANT, plain_vectors=plain_vectors), range(1))
        return module

    found, decayed = after_one_step(True, 0.3), after_one_step(False, 0.3)
    undecayed = after_one_step(False, 0.0, "sgd" if kind == "larc" else kind)
    for one in (0, 2):
        assert torch.equal(found[one].weight, decayed[one].weight)
        assert torch.equal(found[one].bias, undecayed[one].bias)
        assert not torch.equal(found[one].bias, decayed[one].bias)


def test_larc_leaves_zeros_as_they_are() -> None:
    zero_weight, zero_gradient = parameter([0.0, 0.0], [3.0, 4.0]), parameter([3.0, 4.0], [0.0, 0.0])
    without = parameter([1.0, 1.0], None)
    Larc().adapt([zero_weight, zero_gradient, without], weight_decay=0.1, learning_rate=1.0)
    assert zero_weight.grad is not None
    assert zero_weight.grad.tolist() == [3.0, 4.0]
    assert zero_gradient.grad is not None
    assert zero_gradient.grad.tolist() == [0.0, 0.0], "no weight decay either"
    assert without.grad is None


def test_larc_is_sgd_with_momentum_over_the_adapted_gradients() -> None:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, 4.0]]))
    trained = Optimizer([{"params": [module.weight]}], {module.weight: "weight"}, "larc", 0.5, 0.1, CONSTANT)
    weight, velocity = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        gradient = torch.tensor([1.2, 1.6], dtype=torch.float64)
        module.weight.grad = gradient.float().view(1, 2)
        trained.step(step)
        rate = 0.001 * weight.norm() / (gradient.norm() + 0.1 * weight.norm())
        velocity = 0.5 * velocity + rate * (gradient + 0.1 * weight)
        weight = weight - 0.1 * velocity
        torch.testing.assert_close(module.weight[0].detach().double(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["sgd", "larc", "adamw"])
def test_a_frozen_group_stays_bit_equal_and_then_starts_without_momentum(kind: str) -> None:
    module, twin = network(), network()
    trained = optimizer(module, kind, frozen_steps=3)
    initial = copy.deepcopy(module[2].state_dict())
    train(module, trained, range(3))
    assert all(torch.equal(value, initial[name]) for name, value in module[2].state_dict().items())
    assert set(trained.state_dict()) == {"0.weight", "0.bias"}
    assert not torch.equal(module[0].weight, twin[0].weight)
    assert all(parameter.grad is None for parameter in module.parameters())

    twin.load_state_dict(module.state_dict())
    train(module, trained, range(3, 4))
    train(twin, optimizer(twin, kind), range(3, 4))
    assert torch.equal(module[2].weight, twin[2].weight), "as one that has never been trained before"


@pytest.mark.parametrize("kind", ["sgd", "larc", "adamw"])
def test_a_skipped_step_changes_nothing_and_tells_the_learning_rate(kind: str) -> None:
    module = network()
    trained = optimizer(module, kind, Schedule(0.1, "cosine", 0, 4))
    train(module, trained, range(2))
    weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(trained.state_dict())
    assert trained.step(2, skip=True) == pytest.approx(0.05)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    torch.testing.assert_close(trained.state_dict(), state, rtol=0, atol=0)
