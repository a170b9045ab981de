"""The table of two partitions of the same samples, sparse: only the pairs of clusters that share a sample.

Shapes: N samples, P pairs of clusters that occur (at most N, whatever the numbers of clusters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer]


@dataclass(frozen=True)
class Contingency:
    """Pair p says that counts[p] samples are in cluster rows[p] of the one partition and in columns[p] of the other."""

    rows: NDArray[np.int32]  # [P]
    columns: NDArray[np.int32]  # [P]
    counts: NDArray[np.int32]  # [P], at least 1
    row_sizes: NDArray[np.int32]  # of every id up to the largest, zeros included
    column_sizes: NDArray[np.int32]

    @property
    def num_samples(self) -> int:
        """How many samples the table counts."""
        return int(self.counts.sum(dtype=np.int64))

    def dense(self) -> NDArray[np.int64]:
        """The whole table; only for partitions of few clusters."""
        table = np.zeros((len(self.row_sizes), len(self.column_sizes)), np.int64)
        table[self.rows, self.columns] = self.counts
        return table


def contingency(first: IntArray, second: IntArray) -> Contingency:
    """Counts the pairs of clusters over the samples that both partitions assign (ids below 0 are left out).

    One sort of N 64-bit keys; the numbers of clusters cost no more than their sizes [K]. All results are 32 bits wide,
    which halves the memory of a million clusters.

    Args:
        first: [N] ids of the rows.
        second: [N] ids of the columns.
    """
    assert first.ndim == 1
    assert first.shape == second.shape, (first.shape, second.shape)
    assert len(first) < 2**31, len(first)
    assigned = (first >= 0) & (second >= 0)
    if not assigned.all():
        first, second = first[assigned], second[assigned]
    num_columns = int(second.max()) + 1 if len(second) else 1
    keys = first.astype(np.int64)
    keys *= num_columns
    keys += second
    keys.sort()
    is_first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first).astype(np.int32)
    counts = np.diff(starts, append=np.int32(len(keys)))
    pairs = keys[is_first]
    del keys, starts, is_first
    columns = (pairs % num_columns).astype(np.int32)
    pairs //= num_columns
    return Contingency(pairs.astype(np.int32), columns, counts, _sizes(first), _sizes(second))


def _sizes(ids: IntArray) -> NDArray[np.int32]:
    return np.bincount(ids).astype(np.int32)
