"""What a method learns in a step does not depend on how many processes share it: losses, gradients, what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dcdist.distributed.collectives import Collectives
from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.training_step import TrainingStep
from dcdist.features import contiguous_range
from dcdist.models.numerics import Numerics
from tests.distributed.processes import run_processes
from tests.methods.small_methods import NUM_SAMPLES, STREAMS, microbatch, small_method

NUM_MICROBATCHES = 4
NUM_STEPS = 3
FP32 = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)


class KeepsGradients(Optimizer):
    """Remembers what the first step moves weights by, before it does."""

    gradients: dict[str, Any] | None = None

    def step(self, step_in_stage: int, skip: bool = False) -> float:
        if self.gradients is None:
            self.gradients = {
                name: parameter.grad.float().numpy().copy()
                for parameter, name in self._names.items()
                if parameter.grad is not None
            }
        return super().step(step_in_stage, skip)


def train(collectives: Collectives, name: str) -> dict[str, Any]:
    """Some steps of plain gradient descent."""
    own = contiguous_range(NUM_SAMPLES, collectives.rank, collectives.world_size)
    method = small_method(name, own)
    optimizer = KeepsGradients(
        method.parameter_groups(),
        {parameter: name for name, parameter in method.named_parameters()},
        "sgd",
        momentum=0.0,
        weight_decay=0.0,
        schedule=Schedule(0.05, "constant", 0, NUM_STEPS),
    )
    training_step = TrainingStep(method, optimizer, FP32, collectives, NUM_MICROBATCHES)
    figures: dict[str, list[float]] = {}
    for step in range(NUM_STEPS):
        numbers = [100 * step + number for number in training_step.own_microbatches()]
        sums, _ = training_step([microbatch(name, number) for number in numbers], numbers, step)
        for figure, value in {**sums.losses, **sums.figures}.items():
            total = collectives.all_reduce_sum(value.double().reshape(1))
            figures.setdefault(figure, []).append(float(total) / NUM_MICROBATCHES)
    bank = {}
    if method.bank is not None:
        for view, shard in enumerate(method.bank.shards()):
            bank[f"bank {view} ids"] = collectives.all_gather_rows(shard.sample_ids).numpy()
            bank[f"bank {view}"] = collectives.all_gather_rows(shard.features).numpy()
    state = {key: value.float().numpy() for key, value in method.state_dict().items()}
    return {"figures": figures, "arrays": {**state, **bank}, "gradients": optimizer.gradients}


def train_all(collectives: Collectives) -> dict[str, Any]:
    return {name: train(collectives, name) for name in STREAMS}


@pytest.fixture(scope="module")
def results() -> dict[int, list[dict[str, Any]]]:
    return {world_size: run_processes(train_all, world_size) for world_size in (1, 2, 3)}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", STREAMS)
def test_losses_weights_and_what_is_kept_agree_with_one_process(
    results: dict[int, list[dict[str, Any]]], name: str, world_size: int
) -> None:
    alone = results[1][0][name]
    for rank, together in enumerate(result[name] for result in results[world_size]):
        assert together["figures"].keys() == alone["figures"].keys()
        for figure, values in alone["figures"].items():
            np.testing.assert_allclose(together["figures"][figure], values, rtol=1e-5, err_msg=figure)
        for key, value in alone["arrays"].items():
            np.testing.assert_allclose(together["arrays"][key], value, rtol=1e-4, atol=1e-5, err_msg=f"{rank}: {key}")


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", STREAMS)
def test_gradients_agree_with_one_process(results: dict[int, list[dict[str, Any]]], name: str, world_size: int) -> None:
    alone = results[1][0][name]["gradients"]
    # Of a bias in front of batch normalisation the gradient is rounding alone: compared with the largest one.
    largest = max(np.linalg.norm(gradient) for gradient in alone.values())
    for together in (result[name]["gradients"] for result in results[world_size]):
        assert together.keys() == alone.keys()
        for key, gradient in alone.items():
            difference = np.linalg.norm(together[key] - gradient)
            assert difference <= 1e-5 * np.linalg.norm(gradient) + 1e-7 * largest, key


@pytest.mark.parametrize("name", STREAMS)
def test_every_part_of_the_method_learns(results: dict[int, list[dict[str, Any]]], name: str) -> None:
    trained = results[1][0][name]["arrays"]
    names = [key for key, parameter in small_method(name).named_parameters() if parameter.requires_grad]
    initial = small_method(name).state_dict()
    unchanged = [key for key in names if np.array_equal(trained[key], initial[key].numpy())]
    assert unchanged == []
