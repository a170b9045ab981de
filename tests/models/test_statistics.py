"""Running statistics that stay while batch normalisation works as in training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dcdist.models.statistics import frozen_statistics


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(4, momentum=None)
        )
        layers(torch.randn(6, 3, 3, 3))  # statistics that are none of the initial ones
        return layers


def images() -> torch.Tensor:
    return torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1)) + 2.0


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if "running" in name}


def test_statistics_stay_bit_equal_inside_and_move_outside() -> None:
    module = network()
    before = statistics(module)
    with frozen_statistics(module):
        module(images())
    assert all(torch.equal(value, before[name]) for name, value in statistics(module).items())
    module(images())
    assert not any(torch.equal(value, before[name]) for name, value in statistics(module).items())


def test_outputs_and_gradients_are_those_of_training() -> None:
    frozen, plain = network(), network()
    with frozen_statistics(frozen):
        found = frozen(images())
    expected = plain(images())
    assert torch.equal(found, expected)
    for outputs in (found, expected):
        outputs.pow(3).sum().backward()
    for one, other in zip(frozen.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_momentum_is_as_before_even_after_an_error_and_when_nested() -> None:
    module = network()
    with pytest.raises(KeyError), frozen_statistics(module), frozen_statistics(module):
        raise KeyError
    assert (module[1].momentum, module[3].momentum) == (0.3, None)
    moved = copy.deepcopy(module)
    moved(images())
    assert not torch.equal(moved[1].running_mean, module[1].running_mean)
    before = statistics(module)
    with frozen_statistics(module):
        with frozen_statistics(module):
            pass
        module(images())
    assert all(torch.equal(value, before[name]) for name, value in statistics(module).items())


def test_only_the_modules_own_layers_are_frozen() -> None:
    module = network()
    other = nn.BatchNorm1d(4)
    with frozen_statistics(module):
        other(module(images()))
    assert int(other.num_batches_tracked) == 1
    assert bool(other.running_var.ne(1).all())
