"""Squared distances to the nearest and second nearest centroid by matrix products, with a bound on their errors.

Two engines behind one interface; what they say is approximate, search.py makes exact assignments of it.
Shapes: n rows, K centroids, D features; b rows of a block, t centroids of a tile.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from dcdist.errors import UsageError

_LANES = 64  # strided maxima over this many lanes are an order of magnitude faster than a maximum with its index
_BLOCK = {"cpu": (1024, 1024), "cuda": (16384, 8192)}  # rows and centroids of one product: stays in cache on a CPU
_SCORES_A_BLOCK = 2**22  # held at a time where more than two are wanted of each row
_FAISS_TEMPORARY_BYTES = 256 * 2**20


class TopTwo(NamedTuple):
    """The nearest centroid and the squared distances to it and to the second nearest (inf where K = 1)."""

    nearest: torch.Tensor  # [n] int64
    best: torch.Tensor  # [n]
    second: torch.Tensor  # [n]


class Scores(Protocol):
    """Approximate squared distances of rows to the centroids that it was made with."""

    def top_two(self, rows: torch.Tensor, squared_norms: torch.Tensor) -> TopTwo:
        """For rows [n, D] and their squared lengths [n]."""
        ...

    def nearest(self, rows: torch.Tensor, squared_norms: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest `count` centroids [n, count] int64 of each row and squared distances [n, count], ascending."""
        ...

    def error(self, squared_norms: torch.Tensor) -> torch.Tensor:
        """[n]: by how much a squared distance may be off, for rows of these squared lengths."""
        ...


class TorchScores:
    """|x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), the bracket by matrix products of torch in the centroids' precision.

    Args:
        centroids: [K, D] float32 or float64, on the device where the rows are.
    """

    def __init__(self, centroids: torch.Tensor) -> None:
        self._centroids = centroids
        halves = centroids.double().square().sum(1) / 2
        self._biases = -halves.to(centroids.dtype)
        self._largest_norm = float((2 * halves.max()).sqrt())
        self._block_rows, tile = _BLOCK[centroids.device.type]
        self._tiles = [self._tile(start, min(start + tile, len(centroids))) for start in range(0, len(centroids), tile)]

    def _tile(self, start: int, stop: int) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
        weights, biases = self._centroids[start:stop], self._biases[start:stop]
        if stop - start > 2 * _LANES:  # whole lanes; what is added never wins
            padding = -(stop - start) % _LANES
            weights = F.pad(weights, (0, 0, 0, padding))
            biases = F.pad(biases, (0, padding), value=-torch.inf)
        return start, _product(weights, biases)

    def error(self, squared_norms: torch.Tensor) -> torch.Tensor:
        # A sum of D products is off by at most D units in the last place of |x| |c|, in whatever order it is taken
        # (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); the rest are single roundings.
        unit = torch.finfo(self._centroids.dtype).eps / 2
        largest = self._largest_norm
        norms = squared_norms.sqrt()
        products = (2 * self._centroids.shape[1] + 8) * largest * norms
        return 1.01 * unit * (products + 16 * (norms + largest).square()) + 1e-36

    def top_two(self, rows: torch.Tensor, squared_norms: torch.Tensor) -> TopTwo:
        blocks = [self._block(block) for block in torch.split(rows, self._block_rows)]
        index, best, second = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return TopTwo(index, squared_norms - 2 * best, squared_norms - 2 * second)

    def nearest(self, rows: torch.Tensor, squared_norms: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for block in torch.split(rows, max(_SCORES_A_BLOCK // len(self._centroids), 1)):
            scores = torch.cat([product(block) for _, product in self._tiles], dim=1)
            found.append(scores[:, : len(self._centroids)].topk(count, dim=1))  # without the last tile's padding
        best, index = (torch.cat(parts) for parts in zip(*found, strict=True))
        return index, squared_norms.unsqueeze(1) - 2 * best

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """x.c - |c|^2 / 2 of a few rows [b, D] for all centroids: [b, K]."""
        return torch.addmm(self._biases, rows, self._centroids.T)

    def _block(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (start, product), *others = self._tiles
        index, best, second = _largest_two(product(rows))
        index += start
        for start, product in others:
            tile_index, tile_best, tile_second = _largest_two(product(rows))
            index = torch.where(tile_best > best, tile_index + start, index)
            second = torch.maximum(torch.minimum(best, tile_best), torch.maximum(second, tile_second))
            best = torch.maximum(best, tile_best)
        return index, best, second


def _product(weights: torch.Tensor, biases: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows [b, D] -> rows @ weights.T + biases [b, t]."""
    if weights.dtype == torch.float32 and weights.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # oneDNN, which uses the vector units of every processor; MKL, behind addmm, half of AVX-512 on AMD's
        # (Zen 5, one core: 239 against 105 GFLOP/s, faiss 116).
        prepared, offsets = weights.to_mkldnn(), biases.to_mkldnn()
        return lambda rows: F.linear(rows.to_mkldnn(), prepared, offsets).to_dense()
    return lambda rows: torch.addmm(biases, rows, weights.T)


def _largest_two(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[b, t] -> the index of the largest, the largest, the second largest (-inf where t = 1), each [b]."""
    num_rows, width = scores.shape
    if width == 1:
        return (
            torch.zeros_like(scores[:, 0], dtype=torch.int64),
            scores[:, 0],
            torch.full_like(scores[:, 0], -torch.inf),
        )
    if width <= 2 * _LANES:
        values, indices = scores.topk(2, dim=1)
        return indices[:, 0], values[:, 0], values[:, 1]
    groups = scores.view(num_rows, width // _LANES, _LANES)
    lane_maxima = groups.amax(1)
    best, lane = lane_maxima.max(1, keepdim=True)
    column = groups.gather(2, lane.unsqueeze(1).expand(-1, groups.shape[1], 1)).squeeze(2)
    group = column.argmax(1, keepdim=True)
    others = lane_maxima.scatter_(1, lane, -torch.inf).amax(1)
    second = torch.maximum(others, column.scatter_(1, group, -torch.inf).amax(1))
    return (group * _LANES + lane).squeeze(1), best.squeeze(1), second


class FaissScores:
    """The same by faiss' flat index: on the CPU, or by faiss-gpu on the very device of the centroids, never on all.

    Raises:
        UsageError: faiss is not installed, or has no GPU support and the centroids are on a GPU.
    """

    def __init__(self, centroids: torch.Tensor) -> None:
        self._num_features = centroids.shape[1]
        self._largest_norm = float(centroids.double().square().sum(1).max().sqrt())
        self._neighbors = min(2, len(centroids))
        self._index: Any = _flat_index(self._num_features, centroids.device)
        self._index.add(_for_faiss(centroids))

    def error(self, squared_norms: torch.Tensor) -> torch.Tensor:
        unit = torch.finfo(torch.float32).eps / 2  # as in TorchScores, with lengths that are sums in float32 too
        norms, width = squared_norms.sqrt(), self._num_features
        products = (2 * width + 8) * self._largest_norm * norms
        return 1.01 * unit * (products + (width + 16) * (norms + self._largest_norm).square()) + 1e-36

    def top_two(self, rows: torch.Tensor, squared_norms: torch.Tensor) -> TopTwo:
        found = self._index.search(_for_faiss(rows), self._neighbors)
        distances, indices = (torch.as_tensor(part) for part in found)
        second = distances[:, 1] if self._neighbors > 1 else torch.full_like(squared_norms, torch.inf)
        return TopTwo(indices[:, 0], distances[:, 0], second)

    def nearest(self, rows: torch.Tensor, squared_norms: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        distances, indices = (torch.as_tensor(part) for part in self._index.search(_for_faiss(rows), count))
        return indices, distances


def _flat_index(num_features: int, device: torch.device) -> Any:
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError as error:
        raise UsageError(
            "clustering.engine=faiss needs the package faiss-cpu or faiss-gpu: install it, or take the engine torch"
        ) from error
    if device.type == "cpu":
        faiss.omp_set_num_threads(torch.get_num_threads())
        return faiss.IndexFlatL2(num_features)
    if not hasattr(faiss, "GpuIndexFlatL2"):
        raise UsageError(
            f"clustering.engine=faiss on {device} needs faiss-gpu, installed is faiss without GPU support: "
            "install faiss-gpu instead, or take clustering.engine=torch"
        )
    importlib.import_module("faiss.contrib.torch_utils")  # lets indexes take tensors of a GPU
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_FAISS_TEMPORARY_BYTES)
    config = faiss.GpuIndexFlatConfig()
    config.device = device.index or 0
    return faiss.GpuIndexFlatL2(resources, num_features, config)


def _for_faiss(rows: torch.Tensor) -> Any:
    return rows.contiguous().numpy() if rows.device.type == "cpu" else rows.contiguous()


ENGINES: dict[str, Callable[[torch.Tensor], Scores]] = {"torch": TorchScores, "faiss": FaissScores}


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 keep its precision inside, whatever is allowed elsewhere: the error bounds rely on it."""
    backends: Any = torch.backends
    switches = (backends.mkldnn.matmul, backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
