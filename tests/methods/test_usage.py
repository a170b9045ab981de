"""How evenly clusters are used, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dcdist.methods.base import USAGE, usage_entropy_ratio


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (torch.eye(4), 1.0),
        (torch.tensor([[1.0, 0.0]] * 3), 0.0),
        (torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), 0.562335 / math.log(2)),
        (torch.eye(100)[:4], 1.0),  # four samples that are sure of different clusters cannot reach more
        (torch.full((4, 100), 0.01), 1.0),
        (torch.eye(100)[[0, 0, 1, 1]], 0.5),  # log 2 of log 4
    ],
)
def test_usage(assignments: torch.Tensor, expected: float) -> None:
    assert float(usage_entropy_ratio(assignments)[USAGE]) == pytest.approx(expected, abs=1e-5)
