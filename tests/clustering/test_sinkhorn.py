"""Sinkhorn's iteration against values worked out by hand, its limit, and numbers that would overflow."""

from __future__ import annotations

import math

import pytest
import torch

from dcdist.clustering.sinkhorn import sinkhorn
from dcdist.errors import UsageError

_EPSILON = 0.05


def scores_of(exponentials: list[list[float]]) -> torch.Tensor:
    """Scores of which exp(scores / epsilon) are these."""
    return torch.tensor(exponentials).log() * _EPSILON


def test_two_by_two_by_hand() -> None:
    # exp(scores / epsilon) = [[1, 4], [1, 1]].
    # Columns to a sum of 1: (1, 1) / 2 and (4, 1) / 5 give [[1/2, 4/5], [1/2, 1/5]].
    # Rows to a sum of 1: (1/2, 4/5) / (13/10) and (1/2, 1/5) / (7/10) give [[5/13, 8/13], [5/7, 2/7]].
    scores = scores_of([[1, 4], [1, 1]])
    expected = torch.tensor([[5 / 13, 8 / 13], [5 / 7, 2 / 7]])
    torch.testing.assert_close(sinkhorn(scores, _EPSILON, 1), expected)
    # Scaling keeps the ratio (a11 a22) / (a12 a21) = 1/4. In the limit rows and columns sum to 1, so the matrix is
    # [[x, 1 - x], [1 - x, x]] with x^2 / (1 - x)^2 = 1/4: x = 1/3.
    limit = torch.tensor([[1 / 3, 2 / 3], [2 / 3, 1 / 3]])
    torch.testing.assert_close(sinkhorn(scores, _EPSILON, 50), limit)


def test_three_by_three_by_hand() -> None:
    # exp(scores / epsilon) = diag(1, 2, 3) C diag(1, 5, 2) with the circulant C of 4, 1, 1, whose rows and columns
    # sum to 6: the limit is C / 6 whatever the diagonal factors are.
    exponentials = [[4.0, 5.0, 2.0], [2.0, 40.0, 4.0], [3.0, 15.0, 24.0]]
    limit = torch.tensor([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 4.0]]) / 6
    torch.testing.assert_close(sinkhorn(scores_of(exponentials), _EPSILON, 100), limit, rtol=1e-4, atol=1e-5)
    # One iteration: columns sum to 9, 60, 30, which gives
    # [[4/9, 1/12, 1/15], [2/9, 2/3, 2/15], [1/3, 1/4, 4/5]], in 180ths
    # [[80, 15, 12], [40, 120, 24], [60, 45, 144]], whose rows sum to 107, 184 and 249.
    once = torch.tensor(
        [
            [80 / 107, 15 / 107, 12 / 107],
            [40 / 184, 120 / 184, 24 / 184],
            [60 / 249, 45 / 249, 144 / 249],
        ]
    )
    torch.testing.assert_close(sinkhorn(scores_of(exponentials), _EPSILON, 1), once)


def test_more_samples_than_prototypes() -> None:
    scores = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    codes = sinkhorn(scores, _EPSILON, 200)
    assert codes.shape == (64, 5)
    torch.testing.assert_close(codes.sum(1), torch.ones(64))
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 64 / 5), rtol=1e-4, atol=0)


def test_agrees_with_the_algorithm_as_it_is_printed() -> None:
    scores = torch.rand(40, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    codes = (scores / _EPSILON).exp()
    for _ in range(3):
        codes = codes / codes.sum(0) / 7
        codes = codes / codes.sum(1, keepdim=True) / 40
    torch.testing.assert_close(sinkhorn(scores, _EPSILON), (40 * codes).float(), rtol=1e-5, atol=0)


def test_a_small_epsilon_does_not_overflow() -> None:
    # exp(1 / 0.001) is 2e434. Each sample prefers its own prototype by far: the codes are hard, and balanced.
    scores = 2 * torch.eye(4)[torch.tensor([2, 0, 3, 1])] - 1
    assert sinkhorn(scores, 0.001, 3).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    everyone_likes_the_first = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    torch.testing.assert_close(sinkhorn(everyone_likes_the_first, 0.001), torch.full((2, 2), 0.5))


def test_no_gradient_passes_and_scores_stay() -> None:
    scores = torch.rand(3, 2, requires_grad=True)
    before = scores.detach().clone()
    codes = sinkhorn(scores, _EPSILON)
    assert not codes.requires_grad
    assert codes.dtype == torch.float32
    assert torch.equal(scores, before)
    assert sinkhorn(scores.half(), _EPSILON).dtype == torch.float32


@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.0, 3), (-1.0, 3), (math.nan, 3), (0.05, 0)])
def test_refusals(epsilon: float, num_iterations: int) -> None:
    with pytest.raises(UsageError, match=r"make no codes: set epsilon above 0"):
        sinkhorn(torch.zeros(2, 2), epsilon, num_iterations)
