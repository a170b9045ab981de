"""Exact nearest neighbours among the rows of all ranks, the same from every engine and on any number of ranks.

Each rank keeps its own rows and sees the others' a block at a time. In a block an engine's approximate distances,
which come with a bound on their errors (scores.py), leave a few candidates; these are ranked by distances whose every
rounding is fixed (search.py), equal ones by sample id.
Shapes: N rows on all ranks, n of them on this one, D features, k neighbours, T rows of a block, S samples of the
dataset, m rows of a piece, p pairs of a row and a candidate.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dcdist.clustering.partition import count_rows, largest_magnitude
from dcdist.clustering.scores import ENGINES, Scores, TorchScores, full_precision
from dcdist.clustering.search import squared_distances, squared_lengths
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError

_ROWS_A_BLOCK = 2**14  # T: sent at a time
_ROWS_A_PIECE = 2**11  # m: compared with a block at a time
_SCORES_A_PIECE = 2**24  # float64 scores held at a time where candidates stay in doubt
_MORE_THAN_WANTED = 8  # candidates asked for beyond k, so that the last of them is clearly too far


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of each of this rank's rows, nearest first, equally near ones by sample id."""

    sample_ids: torch.Tensor  # [n] int64, of the shard
    indices: torch.Tensor  # [n, k] int64, sample ids of the neighbours
    distances: torch.Tensor  # [n, k] float32, squared


@torch.no_grad()
def nearest_neighbors(
    shard: FeatureShard,
    num_neighbors: int,
    num_samples: int,
    collectives: Collectives,
    at_boundary: Callable[[], None] = lambda: None,
    engine: Literal["auto", "faiss", "torch"] = "auto",
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Neighbors:
    """The k nearest other rows of all ranks to each row of this one. Collective; costs N n D multiplications.

    Args:
        shard: this rank's rows.
        num_neighbors: k.
        num_samples: S.
        collectives: joins the ranks.
        at_boundary: called after each block of rows, equally often on every rank; may raise on all of them to stop.
        engine: who computes distances; "auto" is faiss where it is installed, torch on a GPU or without it.
        device: where distances are computed.

    Raises:
        UsageError: not enough rows to have k neighbours.
        NonFiniteFeaturesError: a row holds nan or inf.
    """
    num_rows = count_rows(shard, collectives)
    if not 1 <= num_neighbors < num_rows:
        raise UsageError(
            f"num_neighbors={num_neighbors} needs more images with features than neighbours, here are {num_rows}: "
            f"set num_neighbors to at least 1 and at most {num_rows - 1}"
        )
    largest_magnitude(shard, collectives)
    if engine == "auto":
        engine = "faiss" if device.type == "cpu" and importlib.util.find_spec("faiss") else "torch"
    with full_precision():
        found = _Found(shard.features.to(device), num_neighbors + 1, num_samples, engine)  # a row finds itself, too
        for sample_ids, rows in _blocks(shard, collectives):
            found.compare(*_without_surplus_copies(sample_ids, rows, num_neighbors + 1))
            at_boundary()
    indices, distances = _without_self(shard.sample_ids, found.sample_ids, found.distances)
    return Neighbors(shard.sample_ids, indices, distances.float())


def neighbor_table(neighbors: Neighbors, num_samples: int, collectives: Collectives) -> torch.Tensor:
    """[S, k] int64: the neighbours of every sample, on every rank; -1 where a sample has no row. Collective."""
    table = torch.full((num_samples, neighbors.indices.shape[1]), -1)
    table[neighbors.sample_ids] = neighbors.indices
    return collectives.all_reduce_max(table)


def _blocks(shard: FeatureShard, collectives: Collectives) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sample ids [T] and rows [T, D] of all ranks in turn, on every rank."""
    for source, count in enumerate(collectives.row_counts(shard.sample_ids)):
        for start in range(0, count, _ROWS_A_BLOCK):
            size = min(_ROWS_A_BLOCK, count - start)
            if source == collectives.rank:
                own = slice(start, start + size)
                sample_ids, rows = shard.sample_ids[own].contiguous(), shard.features[own].contiguous()
            else:
                sample_ids = shard.sample_ids.new_empty(size)
                rows = shard.features.new_empty(size, shard.features.shape[1])
            yield collectives.broadcast(sample_ids, source), collectives.broadcast(rows, source)


def _without_surplus_copies(
    sample_ids: torch.Tensor, rows: torch.Tensor, num_kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of equal rows the `num_kept` of the lowest sample ids: the others are nobody's neighbours.

    They would all be candidates of each other, which collapsed features make quadratically many.
    """
    canonical = np.ascontiguousarray(rows.numpy() + np.float32(0))  # -0 becomes 0
    keys = canonical.view(np.dtype((np.void, canonical.shape[1] * canonical.itemsize))).ravel()
    which = np.unique(keys, return_inverse=True)[1]
    order = np.lexsort((sample_ids.numpy(), which))
    copy = np.arange(len(order)) - np.searchsorted(which[order], which[order])  # how many equal rows come before
    kept = torch.from_numpy(np.sort(order[copy < num_kept]))
    return sample_ids[kept], rows[kept]


def _without_self(
    own: torch.Tensor, indices: torch.Tensor, distances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample ids and distances, both [n, k + 1] -> [n, k]: the row itself left out, or the last, where it is not there.

    A row may miss itself among many equal ones.
    """
    is_self = indices == own.unsqueeze(1)
    is_self[:, -1] |= ~is_self.any(1)
    shape = (len(own), indices.shape[1] - 1)
    return indices[~is_self].view(shape), distances[~is_self].view(shape)


class _Found:
    """The nearest rows so far, `count` for each of the rows [n, D]: sample_ids [n, count], distances [n, count]."""

    def __init__(self, rows: torch.Tensor, count: int, num_samples: int, engine: str) -> None:
        self._rows = rows
        self._squared_norms = squared_lengths(rows) if len(rows) else rows.new_empty(0)
        self._engine = engine
        self.sample_ids = torch.full((len(rows), count), num_samples)  # a placeholder comes after every sample
        self.distances = torch.full((len(rows), count), torch.inf, dtype=torch.float64)

    def compare(self, sample_ids: torch.Tensor, others: torch.Tensor) -> None:
        """Takes the rows [T, D] of these samples [T] into account."""
        if len(self._rows):
            others = others.to(self._rows.device)
            block = _Block(others, self._engine, self.sample_ids.shape[1])
            for start in range(0, len(self._rows), _ROWS_A_PIECE):
                piece = slice(start, start + _ROWS_A_PIECE)
                farthest = self.distances[piece, -1].to(others.device)
                row, column = block.candidates(self._rows[piece], self._squared_norms[piece], farthest)
                distances = squared_distances(self._rows[piece], others, column, row)
                self._merge(piece, row.cpu(), sample_ids[column.cpu()], distances.cpu())

    def _merge(self, piece: slice, row: torch.Tensor, sample_ids: torch.Tensor, distances: torch.Tensor) -> None:
        """Keeps the nearest of the piece's rows so far and of the pairs [p]."""
        num_rows, count = self.sample_ids[piece].shape
        rows = np.concatenate([np.repeat(np.arange(num_rows), count), row.numpy()])
        all_ids = np.concatenate([self.sample_ids[piece].numpy().ravel(), sample_ids.numpy()])
        all_distances = np.concatenate([self.distances[piece].numpy().ravel(), distances.numpy()])
        order = np.lexsort((all_ids, all_distances, rows))
        first = np.searchsorted(rows[order], np.arange(num_rows))
        kept = torch.from_numpy(order[first[:, None] + np.arange(count)])
        self.sample_ids[piece] = torch.from_numpy(all_ids)[kept]
        self.distances[piece] = torch.from_numpy(all_distances)[kept]


class _Block:
    """Rows [T, D] among which neighbours are searched, `count` for each row."""

    def __init__(self, others: torch.Tensor, engine: str, count: int) -> None:
        self._others = others
        self._scores = ENGINES[engine](others)
        self._precise: TorchScores | None = None
        self._count = min(count, len(others))

    def candidates(
        self, rows: torch.Tensor, squared_norms: torch.Tensor, farthest: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs (row [p], other [p]) that hold the nearest `count` of each row [m, D], where not beyond `farthest` [m].

        Args:
            rows: [m, D].
            squared_norms: [m].
            farthest: [m] float64 squared distance to the last neighbour so far; what is farther is left out.
        """
        asked = min(self._count + _MORE_THAN_WANTED, len(self._others))
        index, approximate = self._scores.nearest(rows, squared_norms, asked)
        limits = self._limits(self._scores, squared_norms, approximate, farthest)
        is_candidate = approximate.double() <= limits
        certain = approximate.isfinite().all(1) & (index >= 0).all(1)  # nothing overflowed
        if asked < len(self._others):  # what was not named is clearly too far
            certain &= approximate[:, -1].double() > limits.squeeze(1)
        row, rank = torch.nonzero(is_candidate & certain.unsqueeze(1), as_tuple=True)
        pairs = [(row, index[row, rank]), *self._settle(rows, torch.nonzero(~certain).squeeze(1), farthest)]
        all_rows, all_others = zip(*pairs, strict=True)
        return torch.cat(all_rows), torch.cat(all_others)

    def _settle(
        self, rows: torch.Tensor, doubtful: torch.Tensor, farthest: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same for the rows at the positions `doubtful`, by float64, where any number of pairs may be left."""
        if len(doubtful) and self._precise is None:
            self._precise = TorchScores(self._others.double())
        for part in torch.split(doubtful, max(_SCORES_A_PIECE // len(self._others), 1)) if len(doubtful) else ():
            assert self._precise is not None
            precise = rows[part].double()
            squared_norms = precise.square().sum(1)
            distances = squared_norms.unsqueeze(1) - 2 * self._precise.scores(precise)
            nearest = distances.topk(self._count, dim=1, largest=False).values
            limits = self._limits(self._precise, squared_norms, nearest, farthest[part])
            row, other = torch.nonzero(distances <= limits, as_tuple=True)
            yield part[row], other

    def _limits(
        self, scores: Scores, squared_norms: torch.Tensor, nearest: torch.Tensor, farthest: torch.Tensor
    ) -> torch.Tensor:
        """[m, 1] float64: a row whose approximate distance is above this is not among the nearest `count`."""
        error = scores.error(squared_norms).double()
        last = nearest[:, self._count - 1].double()
        return torch.minimum(last + 2 * error, farthest + error).unsqueeze(1)
