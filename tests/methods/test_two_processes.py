"""On two processes as on one: parts that get no gradient, and steps in which there is nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dcdist.distributed.collectives import Collectives
from dcdist.methods.selflabel import SelfLabel
from tests.distributed.processes import run_processes
from tests.methods.small_methods import small_method
from tests.methods.training import steps


def train(collectives: Collectives) -> dict[str, dict[str, Any]]:
    """States after: heads alone that learn; a step, one without a confident image, and two more."""
    heads_alone = small_method("scan", scan={"train_backbone": False})
    list(steps(heads_alone, "scan", 2, collectives=collectives))
    labelled = small_method("selflabel")
    assert isinstance(labelled, SelfLabel)
    skipped = []
    for sums in steps(labelled, "selflabel", 4, collectives=collectives):
        skipped.append(not sums.losses)
        labelled.threshold = 1.0 if len(skipped) == 1 else 0.25
    assert skipped == [False, True, False, False]
    methods = {"heads alone": heads_alone, "empty step": labelled}
    return {
        name: {key: value.float().numpy() for key, value in method.state_dict().items()}
        for name, method in methods.items()
    }


@pytest.fixture(scope="module")
def results() -> dict[int, Any]:
    return {world_size: run_processes(train, world_size) for world_size in (1, 2)}


@pytest.mark.parametrize("name", ["heads alone", "empty step"])
def test_state_agrees_with_one_process(results: dict[int, Any], name: str) -> None:
    for together in results[2]:
        for key, value in results[1][0][name].items():
            np.testing.assert_allclose(together[name][key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_backbone_that_does_not_learn_stays_bit_equal(results: dict[int, Any]) -> None:
    initial = small_method("scan").state_dict()
    for key, value in results[2][0]["heads alone"].items():
        if key.startswith("backbone."):
            np.testing.assert_array_equal(value, initial[key].float().numpy(), err_msg=key)
