"""The rows of one process on its devices, where they stay while the centroids move.

Each row remembers how far its centroid is at most and how near any other is at least. By the triangle inequality
(Hamerly, "Making k-means even faster", 2010) a row whose bounds still lie apart after the centroids have moved keeps
its centroid; only the others are searched. Most centroids soon move little and a few move far, which would spoil the
bounds of every row, so distances to the few are computed, and bounds are loosened by what the rest moved at most.
Shapes: n rows, K centroids, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from dcdist.clustering.exact_sums import add_rows
from dcdist.clustering.search import CentroidSearch, first_occurrences, squared_distances, squared_lengths
from dcdist.clustering.types import UNASSIGNED

T = TypeVar("T")

_ROUNDING = 1e-6  # widens a float32 bound by more than the few roundings that go into it
_QUANTILES = (0.0, 0.5, 0.75, 0.9, 0.97, 1.0)  # of the centroids' movements, tried as the border between few and rest
_OVERHEAD = 150  # passing over a row costs as much as this many distances
_WORTHWHILE = 0.7  # of the cost of searching every row: what the bounds must save, as they promise more than they hold
_ROWS_A_PIECE = 2**15  # searched at a time


class Centroids:
    """Centroids [K, D] float32 on the CPU, and at most how far each has moved [K] float32 since `previous`."""

    def __init__(self, values: torch.Tensor, previous: torch.Tensor | None = None) -> None:
        self.values = values
        self.distinct = first_occurrences(values)
        self.movements: torch.Tensor | None = None
        if previous is not None:
            every = torch.arange(len(values))
            self.movements = (squared_distances(values, previous, every).sqrt() * (1 + _ROUNDING)).float()


class ShardedRows:
    """The rows of this process, cut into contiguous parts, one a device; no device is used that is not named.

    Args:
        rows: [n, D] float32 on the CPU; a device that is a CPU works on them in place.
        devices: where the parts go; the same one may be named several times.
        num_clusters: K.
        engine: a name of `scores.ENGINES`.
        fraction_bits: the grid of the exact sums, see exact_sums.py.
    """

    def __init__(
        self, rows: torch.Tensor, devices: Sequence[torch.device], num_clusters: int, engine: str, fraction_bits: int
    ) -> None:
        cuts = [len(rows) * number // len(devices) for number in range(len(devices) + 1)]
        self._sums_shape = (num_clusters, rows.shape[1])
        cut = zip(devices, cuts, cuts[1:], strict=False)
        pieces = [(device, start, stop) for device, start, stop in cut if start < stop]
        self._starts = [start for _, start, _ in pieces]
        self._parts = [
            _DeviceRows(rows[start:stop].to(device), num_clusters, engine, fraction_bits)
            for device, start, stop in pieces
        ]

    def assign(self, centroids: Centroids) -> int:
        """Moves every row to its nearest centroid, ties to the lowest index; returns how many rows changed."""
        return sum(self._each(lambda part: part.assign(centroids)))

    def move(self, index: torch.Tensor, clusters: torch.Tensor) -> None:
        """Assigns the rows at these positions [m] to these clusters [m], though others may be as near.

        Ends the use of `assign` and `sums`, which rely on nearest centroids.
        """
        for part, start in zip(self._parts, self._starts, strict=True):
            inside = (index >= start) & (index < start + len(part.assignments))
            target = part.assignments
            target[(index[inside] - start).to(target.device)] = clusters[inside].to(target)

    def sums(self) -> torch.Tensor:
        """[K, D] float64 on the CPU: the sum of each cluster's rows, in multiples of 2^-fraction_bits."""
        total = torch.zeros(self._sums_shape, dtype=torch.float64)
        for part in self._parts:
            total += part.sums.cpu()
        return total

    def assignments(self) -> torch.Tensor:
        """[n] int32 on the CPU."""
        return torch.cat([torch.empty(0, dtype=torch.int32), *(part.assignments.cpu() for part in self._parts)])

    def distances(self, centroids: torch.Tensor) -> torch.Tensor:
        """[n] float32 on the CPU: squared distance of each row to the centroid that it is assigned to."""
        return torch.cat([torch.empty(0), *self._each(lambda part: part.distances(centroids).cpu())])

    def _each(self, work: Callable[[_DeviceRows], T]) -> list[T]:
        if len(self._parts) < 2:
            return [work(part) for part in self._parts]
        with ThreadPoolExecutor(len(self._parts)) as pool:  # so that no device waits for another
            return list(pool.map(work, self._parts))


class _DeviceRows:
    """Rows [n, D] on one device, their assignments, and the sums of each cluster's rows."""

    def __init__(self, rows: torch.Tensor, num_clusters: int, engine: str, fraction_bits: int) -> None:
        self._rows = rows
        self._engine = engine
        self._fraction_bits = fraction_bits
        self._squared_norms = squared_lengths(rows)
        self._upper = torch.full_like(self._squared_norms, torch.inf)
        self._lower = torch.zeros_like(self._squared_norms)
        self.assignments = torch.full((len(rows),), UNASSIGNED, dtype=torch.int32, device=rows.device)
        self.sums = torch.zeros(num_clusters, rows.shape[1], dtype=torch.float64, device=rows.device)

    def assign(self, centroids: Centroids) -> int:
        """Moves every row to its nearest centroid; returns how many rows changed."""
        search = CentroidSearch(centroids.values.to(self._rows.device), centroids.distinct, self._engine)
        if centroids.movements is not None:
            open_rows = self._loosen(centroids.values, centroids.movements.to(self._rows.device))
            if open_rows is not None:
                index = torch.nonzero(open_rows).squeeze(1)
                return sum(self._search(search, piece) for piece in torch.split(index, _ROWS_A_PIECE) if len(piece))
        starts = range(0, len(self._rows), _ROWS_A_PIECE)
        return sum(self._search(search, slice(start, start + _ROWS_A_PIECE)) for start in starts)

    def distances(self, centroids: torch.Tensor) -> torch.Tensor:
        """[n] float32: squared distance to the own centroid."""
        return squared_distances(self._rows, centroids.to(self._rows.device), self.assignments).float()

    def _search(self, search: CentroidSearch, where: torch.Tensor | slice) -> int:
        rows, before = self._rows[where], self.assignments[where]
        found, self._upper[where], self._lower[where] = search.search(rows, self._squared_norms[where])
        changed = torch.nonzero(found != before).squeeze(1)
        moved, left = rows[changed], before[changed]
        self.assignments[where] = found
        if len(changed) and int(left[0]) != UNASSIGNED:  # all rows have a centroid after the first search, none before
            add_rows(self.sums, moved, left, self._fraction_bits, sign=-1.0)
        add_rows(self.sums, moved, found[changed], self._fraction_bits)
        return len(changed)

    def _loosen(self, centroids: torch.Tensor, movements: torch.Tensor) -> torch.Tensor | None:
        """Makes the bounds hold for the moved centroids.

        Returns:
            [n] bool, the rows that the bounds leave open; None where it costs less to search all, which renews them.
        """
        own = movements[self.assignments]
        self._upper.add_(own).mul_(1 + _ROUNDING)
        border = self._border(movements, own)
        if border is None:
            return None
        self._lower.mul_(1 - _ROUNDING).sub_(border)
        far = torch.nonzero(movements > border).squeeze(1)
        if len(far):
            few = CentroidSearch(centroids.to(movements.device)[far], torch.arange(len(far)), self._engine)
            torch.minimum(self._lower, few.lower_bounds(self._rows, self._squared_norms), out=self._lower)
        return (self._upper >= self._lower) | (own > border)

    def _border(self, movements: torch.Tensor, own: torch.Tensor) -> float | None:
        """The movement above which distances to a centroid are computed rather than bounded, the cheapest of a few."""
        num_rows, num_clusters = len(own), len(movements)
        slack = self._lower - self._upper
        ordered = movements.sort().values
        best: tuple[float, float | None] = (_WORTHWHILE * num_rows * num_clusters, None)
        for quantile in _QUANTILES:
            border = ordered[round(quantile * (num_clusters - 1))]
            num_far = int((ordered > border).sum())
            num_open = int(((slack <= border) | (own > border)).sum())
            cost = num_open * (num_clusters + _OVERHEAD)
            if num_far:
                cost += num_rows * (num_far + _OVERHEAD)
            if cost < best[0]:
                best = (cost, float(border))
        return best[1]
