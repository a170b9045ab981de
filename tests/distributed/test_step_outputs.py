"""The outputs of a step on every rank: their nesting, their order, and the gradients that flow back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcdist.distributed.collectives import Collectives
from dcdist.distributed.step_outputs import detached, gather_outputs
from tests.distributed.processes import run_processes

NUM_MICROBATCHES = 5  # 2 of the first rank, 3 of the second
MICROBATCH_SIZE = 2


class Pair(NamedTuple):
    left: torch.Tensor
    right: tuple[torch.Tensor, ...]


def outputs(number: int) -> dict[str, Any]:
    """Of the microbatch of this number: rows that tell where they are from."""
    rows = torch.arange(MICROBATCH_SIZE) + 10 * number
    return {
        "pair": Pair(rows.float().unsqueeze(1), (rows, rows.bfloat16().view(-1, 1, 1))),
        "list": [rows % 2 == 0],
        "nothing": (),
        "mapping": {"inner": rows.double()},
    }


def assert_joined(found: dict[str, Any], rows: Sequence[int]) -> None:
    expected = torch.tensor(rows)
    assert list(found) == ["pair", "list", "nothing", "mapping"]
    assert isinstance(found["pair"], Pair)
    assert torch.equal(found["pair"].left, expected.float().unsqueeze(1))
    assert torch.equal(found["pair"].right[0], expected)
    assert torch.equal(found["pair"].right[1], expected.bfloat16().view(-1, 1, 1))
    assert isinstance(found["pair"].right, tuple)
    assert isinstance(found["list"], list)
    assert torch.equal(found["list"][0], expected % 2 == 0)
    assert found["nothing"] == ()
    assert torch.equal(found["mapping"]["inner"], expected.double())


def test_one_process_joins_its_microbatches_in_their_order() -> None:
    assert_joined(gather_outputs([outputs(3), outputs(0)], Collectives()), [30, 31, 0, 1])
    assert_joined(gather_outputs([outputs(2)], Collectives()), [20, 21])


def test_detached_outputs_have_the_same_nesting_and_values_and_no_graph() -> None:
    with_graph = {"pair": Pair(torch.ones(2, 1).requires_grad_() * 2, (torch.zeros(2),))}
    found = detached(with_graph)
    assert isinstance(found["pair"], Pair)
    assert torch.equal(found["pair"].left, torch.full((2, 1), 2.0))
    assert not found["pair"].left.requires_grad
    assert with_graph["pair"].left.requires_grad, "those that were given keep theirs"


class Network(nn.Module):
    """A layer before the gathering, and one that the loss uses after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(3, 4)
        self.after = nn.Linear(4, 4)

    def forward(self, microbatches: Sequence[torch.Tensor]) -> list[Pair]:
        return [Pair(self.before(images), (self.after(self.before(images)).square(),)) for images in microbatches]


def coupled_loss(network: Network, step: Pair) -> torch.Tensor:
    """Every row meets every other one, so that no rank could compute its share alone."""
    similarities = step.left @ step.left.T
    return similarities.log_softmax(1).diagonal().mean() + (network.after(step.left) * step.right[0]).std()


def everything(collectives: Collectives) -> dict[str, Any]:
    """Order of rows, loss and gradients on this rank."""
    rank, world_size = collectives.rank, collectives.world_size
    own = range(NUM_MICROBATCHES * rank // world_size, NUM_MICROBATCHES * (rank + 1) // world_size)
    joined = gather_outputs([outputs(number) for number in own], collectives)
    assert_joined(joined, [10 * number + row for number in range(NUM_MICROBATCHES) for row in range(MICROBATCH_SIZE)])

    network = Network()
    wrapped = DistributedDataParallel(network) if world_size > 1 else network
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(MICROBATCH_SIZE, 3, generator=generator) for _ in range(NUM_MICROBATCHES)]
    step = gather_outputs(wrapped([images[number] for number in own]), collectives)
    loss = coupled_loss(network, step)
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}  # type: ignore[union-attr]
    return {"loss": float(loss.detach()), "gradients": gradients}


@pytest.fixture(scope="module")
def together() -> list[dict[str, Any]]:
    return run_processes(everything, 2)  # which also checks the order of the rows on both ranks


def test_the_loss_on_two_processes_is_that_of_one(together: list[dict[str, Any]]) -> None:
    alone = everything(Collectives())
    for rank in together:
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_gradients_on_two_processes_are_those_of_one_before_and_after_the_gathering(
    together: list[dict[str, Any]],
) -> None:
    alone = everything(Collectives())["gradients"]
    assert all(np.abs(gradient).max() > 1e-3 for gradient in alone.values())
    for rank in together:
        for name, gradient in alone.items():
            np.testing.assert_allclose(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)
