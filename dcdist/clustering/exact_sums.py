"""Sums of rows that come out the same, bit by bit, in whatever order and on however many processes they are added.

Every value is rounded once to a multiple of 2^-q, with q such that a sum over all rows stays below 2^53 multiples.
Float64 holds each partial sum of that size exactly, so the additions have no rounding errors: they are associative,
atomics of a GPU and reductions between processes may take them in any order, and subtracting a row undoes adding it.
With 2^20 rows the rounding is at 2^-32 of the largest value, finer than float32 itself but for small values.
Shapes: n rows of this rank, K clusters, D features.
"""

from __future__ import annotations

import math

import torch

_ROWS_A_BLOCK = 1024  # converted to float64 at a time: stays in cache
_FLOAT64_BITS = 53
_INT64_BITS = 62


def fraction_bits(largest: float, num_rows: int) -> int:
    """q: num_rows values of at most `largest` in magnitude, each in multiples of 2^-q, add up to less than 2^53."""
    if largest == 0:
        return 0
    return _FLOAT64_BITS - math.frexp(largest)[1] - num_rows.bit_length() - 1


def add_rows(
    sums: torch.Tensor, rows: torch.Tensor, assignments: torch.Tensor, fraction_bits: int, sign: float = 1.0
) -> None:
    """Adds `sign` times each row [n, D], in multiples of 2^-fraction_bits, to its cluster's sum [K, D] float64."""
    scale = math.ldexp(1.0, fraction_bits)
    for block, clusters in zip(torch.split(rows, _ROWS_A_BLOCK), torch.split(assignments, _ROWS_A_BLOCK), strict=True):
        sums.index_add_(0, clusters, block.double().mul_(scale).round_(), alpha=sign)


def exact_total(values: torch.Tensor, largest: float, num_values: int) -> torch.Tensor:
    """The sum of non-negative values [n] float64 in multiples of 2^-total_bits(...), [1] int64: ranks may add theirs.

    Args:
        values: this rank's.
        largest: the largest value on all ranks.
        num_values: how many there are on all ranks.
    """
    scale = math.ldexp(1.0, total_bits(largest, num_values))
    return values.mul(scale).round_().to(torch.int64).sum(0, keepdim=True)


def total_bits(largest: float, num_values: int) -> int:
    """The number of fraction bits of `exact_total`, such that it stays below 2^62."""
    if largest == 0:
        return 0
    return _INT64_BITS - math.frexp(largest)[1] - num_values.bit_length()
