"""Sums that do not depend on the order in which rows are added."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from dcdist.clustering.exact_sums import add_rows, exact_total, fraction_bits, total_bits


def summed(rows: torch.Tensor, assignments: torch.Tensor, num_clusters: int, bits: int) -> torch.Tensor:
    sums = torch.zeros(num_clusters, rows.shape[1], dtype=torch.float64)
    add_rows(sums, rows, assignments, bits)
    return sums


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 3e37])
def test_any_order_gives_the_same_bits(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 3, generator=generator) * torch.logspace(-6, 0, 5000).unsqueeze(1) * scale
    assignments = torch.randint(4, (5000,), generator=generator, dtype=torch.int32)
    bits = fraction_bits(float(rows.abs().max()), len(rows))
    expected = summed(rows, assignments, 4, bits)
    order = torch.randperm(5000, generator=generator)
    assert torch.equal(summed(rows[order], assignments[order], 4, bits), expected)
    halves = [summed(rows[part], assignments[part], 4, bits) for part in (slice(0, 1234), slice(1234, None))]
    assert torch.equal(halves[0] + halves[1], expected)
    # The plain float64 sum of the same rows does depend on the order, so the equality above is no accident.
    plain = torch.zeros(1, 3, dtype=torch.float64)
    one = torch.zeros(5000, dtype=torch.int64)
    assert not torch.equal(plain.index_add(0, one, rows.double()), plain.index_add(0, one, rows[order].double()))


def test_close_to_the_rational_sum() -> None:
    rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    bits = fraction_bits(float(rows.abs().max()), 300)
    (sums,) = summed(rows, torch.zeros(300, dtype=torch.int32), 1, bits) * math.ldexp(1.0, -bits)
    for column in range(2):
        exact = float(sum((Fraction(float(value)) for value in rows[:, column]), Fraction(0)))
        assert float(sums[column]) == pytest.approx(exact, abs=300 * 2.0**-bits)


def test_subtracting_undoes_adding() -> None:
    rows = torch.randn(1000, 5, generator=torch.Generator().manual_seed(2))
    bits = fraction_bits(float(rows.abs().max()), 1000)
    sums = summed(rows, torch.zeros(1000, dtype=torch.int32), 1, bits)
    add_rows(sums, rows[300:700], torch.zeros(400, dtype=torch.int32), bits, sign=-1.0)
    kept = torch.cat([rows[:300], rows[700:]])
    assert torch.equal(sums, summed(kept, torch.zeros(600, dtype=torch.int32), 1, bits))


@pytest.mark.parametrize("largest", [1.0, 0.9999999, 1e-30, 3e38])
@pytest.mark.parametrize("num_rows", [1, 2, 1023, 1024, 10**9])
def test_bits_leave_room_for_every_row_at_its_largest(largest: float, num_rows: int) -> None:
    bits = fraction_bits(largest, num_rows)
    room = num_rows * (Fraction(largest) * Fraction(2) ** bits + 1)
    assert 2**48 < room <= 2**53


def test_totals() -> None:
    values = torch.tensor([0.1, 7.25, 0.0, 3.5], dtype=torch.float64)
    bits = total_bits(7.25, 4)
    total = exact_total(values[:1], 7.25, 4) + exact_total(values[1:], 7.25, 4)
    assert int(total) == int(exact_total(values, 7.25, 4))
    assert math.ldexp(int(total), -bits) == pytest.approx(10.85, rel=1e-15)
    assert int(exact_total(torch.zeros(3, dtype=torch.float64), 0.0, 3)) == 0
