"""Exact nearest centroids: the same answer from every engine, device, number of threads and split of the rows.

An engine's float32 distances come with an error bound. Where the second nearest centroid is not clearly farther than
that, the row is settled in float64, and where float64 products cannot tell either, by distances whose every rounding
is fixed, the lowest index winning ties. So assignments depend on the numbers alone.
Shapes: n rows, K centroids, D features, p pairs of a row and a centroid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from dcdist.clustering.scores import ENGINES, TorchScores, full_precision

_ROWS_A_BLOCK = 256  # of float64 differences: stays in cache
_SCORES_A_BLOCK = 2**22  # float64 scores held at a time where ties are settled


class Nearest(NamedTuple):
    """What a search says of each row."""

    assignments: torch.Tensor  # [n] int32, the nearest centroid, the lowest index of several
    upper: torch.Tensor  # [n] float32, the distance to it is at most this
    lower: torch.Tensor  # [n] float32, the distance to every other centroid is at least this


class CentroidSearch:
    """Finds the nearest of the centroids [K, D] float32 for rows on the same device.

    Args:
        centroids: [K, D] float32.
        distinct: [U] int64 from `first_occurrences`; equal centroids would make every row a tie.
        engine: a name of `scores.ENGINES`.
    """

    def __init__(self, centroids: torch.Tensor, distinct: torch.Tensor, engine: str) -> None:
        self._has_duplicates = len(distinct) < len(centroids)
        self._distinct = distinct.to(centroids.device)
        self._centroids = centroids[self._distinct] if self._has_duplicates else centroids
        self._scores = ENGINES[engine](self._centroids)
        self._precise: TorchScores | None = None

    def search(self, rows: torch.Tensor, squared_norms: torch.Tensor) -> Nearest:
        """Rows [n, D] float32 with their squared lengths [n] float32 -> their nearest centroids."""
        index, best, second = self._scores.top_two(rows, squared_norms)
        error = self._scores.error(squared_norms)
        doubtful = torch.nonzero(~(second - best > 2 * error)).squeeze(1)  # an overflow compares false, too
        if len(doubtful):
            index[doubtful] = self._settle(rows[doubtful])
        upper = (best + error).nan_to_num_(nan=torch.inf).clamp_(min=0).sqrt_()
        lower = (second - error).nan_to_num_(nan=0.0, posinf=torch.inf).clamp_(min=0).sqrt_()
        if self._has_duplicates:
            lower.zero_()  # a centroid that equals the nearest one was not compared
        return Nearest(self._distinct[index].int(), upper, lower)

    def lower_bounds(self, rows: torch.Tensor, squared_norms: torch.Tensor) -> torch.Tensor:
        """[n] float32: no centroid is nearer to the row than this."""
        best = self._scores.top_two(rows, squared_norms).best
        return (best - self._scores.error(squared_norms)).nan_to_num_(nan=0.0).clamp_(min=0).sqrt_()

    def _settle(self, rows: torch.Tensor) -> torch.Tensor:
        if self._precise is None:
            self._precise = TorchScores(self._centroids.double())
        precise = rows.double()
        squared_norms = precise.square().sum(1)
        index, best, second = self._precise.top_two(precise, squared_norms)
        error = self._precise.error(squared_norms)
        tied = torch.nonzero(~(second - best > 2 * error)).squeeze(1)
        for part in torch.split(tied, max(_SCORES_A_BLOCK // len(self._centroids), 1)):
            limits = (squared_norms[part] - best[part] - 2 * error[part]) / 2
            candidates = torch.nonzero(self._precise.scores(precise[part]) >= limits.unsqueeze(1))
            index[part] = self._first_nearest(rows[part], candidates[:, 0], candidates[:, 1])
        return index

    def _first_nearest(self, rows: torch.Tensor, row: torch.Tensor, centroid: torch.Tensor) -> torch.Tensor:
        """Of the pairs (row [p], centroid [p]) the nearest centroid of each row, the lowest index of equal ones."""
        distances = squared_distances(rows, self._centroids, centroid, row)
        smallest = distances.new_full((len(rows),), torch.inf).scatter_reduce_(0, row, distances, "amin")
        nearest = distances == smallest[row]
        first = torch.full((len(rows),), len(self._centroids), dtype=torch.int64, device=rows.device)
        return first.scatter_reduce_(0, row[nearest], centroid[nearest], "amin")


def squared_distances(
    rows: torch.Tensor, centroids: torch.Tensor, centroid: torch.Tensor, row: torch.Tensor | None = None
) -> torch.Tensor:
    """[p] float64: |rows[row[i]] - centroids[centroid[i]]|^2; without `row`, that of each row in turn.

    From differences, so that nothing cancels, and added by halves in an order that no device or thread changes.
    """
    distances = torch.empty(len(centroid), dtype=torch.float64, device=rows.device)
    for start in range(0, len(centroid), _ROWS_A_BLOCK):
        part = slice(start, start + _ROWS_A_BLOCK)
        points = rows[part] if row is None else rows[row[part]]
        squares = points.double() - centroids[centroid[part]].double()
        squares.square_()
        width = squares.shape[1]
        while width > 1:
            half = (width + 1) // 2
            squares[:, : width - half] += squares[:, half:width]
            width = half
        distances[part] = squares[:, 0]
    return distances


def squared_lengths(rows: torch.Tensor) -> torch.Tensor:
    """[n] float32: |row|^2 of rows [n, D], off by one rounding."""
    lengths = torch.empty(len(rows), device=rows.device)  # a list of small results would leave holes in the heap
    for start in range(0, len(rows), _ROWS_A_BLOCK):
        part = slice(start, start + _ROWS_A_BLOCK)
        lengths[part] = rows[part].double().square_().sum(1)
    return lengths


def first_occurrences(centroids: torch.Tensor) -> torch.Tensor:
    """[U] int64, ascending: the lowest index of each distinct row of centroids [K, D] on the CPU."""
    canonical = np.ascontiguousarray(centroids.numpy() + np.float32(0))  # -0 becomes 0
    keys = canonical.view(np.dtype((np.void, canonical.shape[1] * canonical.itemsize))).ravel()
    return torch.from_numpy(np.sort(np.unique(keys, return_index=True)[1]))


@torch.no_grad()
def nearest_centroids(
    rows: torch.Tensor, centroids: torch.Tensor, engine: str = "torch"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest centroid of each row; nothing of size n x K is held.

    Args:
        rows: [n, D] float32; the search runs on its device.
        centroids: [K, D] float32.
        engine: "torch" or "faiss"; both give the same bits.

    Returns:
        assignments [n] int32, the lowest index of equally near centroids; squared distances [n] float32.
    """
    if not len(rows):
        return torch.empty(0, dtype=torch.int32, device=rows.device), torch.empty(0, device=rows.device)
    with full_precision():
        centroids = centroids.to(rows.device)
        search = CentroidSearch(centroids, first_occurrences(centroids.cpu()), engine)
        assignments = search.search(rows, squared_lengths(rows)).assignments
        return assignments, squared_distances(rows, centroids, assignments).float()
