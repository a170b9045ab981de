"""What the tests of the further clusterers run on several processes, beside that of k-means."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dcdist.clustering import neighbors as neighbors_module
from dcdist.clustering.gmm import GaussianMixture
from dcdist.clustering.hierarchical import HierarchicalKMeans
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.neighbors import nearest_neighbors, neighbor_table
from dcdist.clustering.pic import PowerIterationClustering
from dcdist.clustering.types import Clusterer
from dcdist.distributed.collectives import Collectives
from dcdist.errors import Preempted, UsageError
from tests.clustering.ranks import CASES, Result, as_arrays, everything, fit_case, mixture, shard_of

PLUS_PLUS = ("mixture", "samples without rows", "constant")

# Bit by bit the same for every number of ranks.
EXACT: dict[str, Clusterer] = {
    "kmeans++": KMeans(20, 5, initial="kmeans++"),
    "kmeans++ distributed": KMeans(20, 5, placement="distributed", initial="kmeans++"),
    "pic": PowerIterationClustering(),
    "pic, few": PowerIterationClustering(num_neighbors=3, sigma=0.5, max_clusters=9),
    "hierarchical": HierarchicalKMeans(KMeans(60, 5)),
    "hierarchical distributed": HierarchicalKMeans(KMeans(60, 5, placement="distributed", initial="kmeans++"), 5),
}
# The same but for rounding.
ROUNDED: dict[str, Clusterer] = {
    "diagonal": GaussianMixture(12, "diagonal", 6),
    "tied": GaussianMixture(12, "tied", 6, initial="kmeans++"),
}


def fit(collectives: Collectives, clusterer: Clusterer, at_boundary: Callable[[], None] = lambda: None) -> Result:
    rows = torch.nn.functional.normalize(mixture(500, 6, 15))
    shard = shard_of(rows, torch.arange(500) * 2 + 1, collectives.rank, collectives.world_size)
    return as_arrays(clusterer.fit(shard, 1010, collectives, torch.Generator().manual_seed(5), at_boundary))


def interrupted(collectives: Collectives, clusterer: Clusterer) -> tuple[int, int, Result]:
    """How often the boundary was called until a stop at the third call, then in a whole fit, and the result of that."""
    calls = [0]

    def stop() -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise Preempted("make room")

    with contextlib.suppress(Preempted):
        fit(collectives, clusterer, stop)
    num_calls, calls[0] = calls[0], 3
    result = fit(collectives, clusterer, stop)
    return num_calls, calls[0] - 3, result


def neighbor_tables(collectives: Collectives) -> dict[str, Any]:
    """The tables of both engines, of rows with ties and copies; a refusal."""
    rows = torch.cat([mixture(150, 5, 9), torch.tensor([[x, y, 0.0, 0.0, 0.0] for x in range(8) for y in range(8)])])
    rows = torch.cat([rows, rows[:20], rows[:20]])
    shard = shard_of(rows, torch.arange(len(rows)) * 3, collectives.rank, collectives.world_size)
    num_samples = 3 * len(rows)
    tables: dict[str, Any] = {}
    calls = [0]

    def count() -> None:
        calls[0] += 1

    block, neighbors_module._ROWS_A_BLOCK = neighbors_module._ROWS_A_BLOCK, 50
    for engine in ("torch", "faiss"):
        found = nearest_neighbors(shard, 7, num_samples, collectives, count, engine)  # type: ignore[arg-type]
        tables[engine] = neighbor_table(found, num_samples, collectives).numpy()
    neighbors_module._ROWS_A_BLOCK = block
    tables["calls"] = calls[0]
    try:
        nearest_neighbors(shard, len(rows), num_samples, collectives)
    except UsageError as error:
        tables["refusal"] = str(error)
    return tables


def everything_of_clusterers(collectives: Collectives) -> dict[str, Any]:
    """What ranks.py runs and all of the above, in one start of the processes."""
    clusterers = {**EXACT, **ROUNDED}
    plus_plus = {
        (name, placement): as_arrays(fit_case(collectives, name, placement, initial="kmeans++"))
        for name in PLUS_PLUS
        for placement in ("rank0", "distributed")
    }
    assert set(PLUS_PLUS) <= set(CASES)
    return {
        **everything(collectives),
        "plus plus": plus_plus,
        "clusterers": {name: interrupted(collectives, clusterer) for name, clusterer in clusterers.items()},
        "parameters": {name: _parameters(collectives, mixture) for name, mixture in ROUNDED.items()},
        "neighbors": neighbor_tables(collectives),
    }


def _parameters(collectives: Collectives, clusterer: Any) -> tuple[np.ndarray, ...]:
    rows = torch.nn.functional.normalize(mixture(500, 6, 15))
    shard = shard_of(rows, torch.arange(500), collectives.rank, collectives.world_size)
    fitted = clusterer.fit_parameters(shard, 500, collectives, torch.Generator().manual_seed(5))
    parameters = fitted.parameters
    return tuple(part.numpy() for part in (parameters.weights, parameters.means, parameters.covariances))
