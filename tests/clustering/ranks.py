"""What the tests run on several processes; imports little, as every process imports it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dcdist.clustering.kmeans import KMeans, Placement
from dcdist.clustering.partition import NonFiniteFeaturesError
from dcdist.clustering.pca import fit_pca
from dcdist.clustering.types import FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.errors import Preempted, UsageError

Result = tuple[np.ndarray, np.ndarray, np.ndarray, float, int, int]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixture(num_rows: int, num_features: int, num_modes: int, seed: int = 0) -> torch.Tensor:
    modes = 3 * normal(num_modes, num_features, seed=seed + 1)
    chosen = torch.randint(num_modes, (num_rows,), generator=torch.Generator().manual_seed(seed + 2))
    return modes[chosen] + normal(num_rows, num_features, seed=seed + 3)


def _sphere() -> torch.Tensor:
    return torch.nn.functional.normalize(mixture(500, 6, 20))


# Each: rows, sample ids, number of samples, arguments of KMeans.
CASES: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor, int, dict[str, Any]]]] = {
    "mixture": lambda: (mixture(900, 8, 30), torch.arange(900), 900, {"num_clusters": 40}),
    "samples without rows": lambda: (mixture(300, 4, 9), torch.arange(300) * 2 + 1, 640, {"num_clusters": 7}),
    "spherical": lambda: (_sphere(), torch.arange(500), 500, {"num_clusters": 25, "spherical": True}),
    "duplicates": lambda: (normal(6, 3)[torch.arange(240) % 6], torch.arange(240), 240, {"num_clusters": 20}),
    "constant": lambda: (torch.full((30, 3), 0.3), torch.arange(30), 30, {"num_clusters": 5}),
    "zeros": lambda: (torch.zeros(30, 3), torch.arange(30), 30, {"num_clusters": 5}),
    "as many clusters as rows": lambda: (normal(40, 3), torch.arange(40), 40, {"num_clusters": 40}),
    "many empty": lambda: (
        torch.cat([torch.zeros(60, 2), normal(20, 2)]),
        torch.arange(80),
        80,
        {"num_clusters": 30, "num_iterations": 2},
    ),
}

# Positions of the first row of each rank; interleaved: sample ids dealt out in turn.
SHARES: dict[int, tuple[float, ...] | str] = {1: (0.0, 1.0), 2: "interleaved", 3: (0.0, 0.85, 0.85, 1.0)}


def shard_of(rows: torch.Tensor, sample_ids: torch.Tensor, rank: int, world_size: int) -> FeatureShard:
    share = SHARES[world_size]
    if isinstance(share, str):
        return FeatureShard(sample_ids[rank::world_size], rows[rank::world_size])
    start, stop = (round(cut * len(rows)) for cut in share[rank : rank + 2])
    return FeatureShard(sample_ids[start:stop], rows[start:stop])


def as_arrays(result: HeadClustering) -> Result:
    return (
        result.assignments.numpy(),
        result.distances.numpy(),
        result.centroids.numpy(),
        result.objective,
        result.num_iterations,
        result.num_empty_repaired,
    )


def fit_case(
    collectives: Collectives, name: str, placement: str, at_boundary: Callable[[], None] = lambda: None, **changes: Any
) -> HeadClustering:
    rows, sample_ids, num_samples, arguments = CASES[name]()
    shard = shard_of(rows, sample_ids, collectives.rank, collectives.world_size)
    kmeans = KMeans(placement=placement, **{**arguments, **changes})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(11)
    return kmeans.fit(shard, num_samples, collectives, generator, at_boundary)


def every_case(collectives: Collectives) -> dict[tuple[str, str], Result]:
    return {
        (name, placement): as_arrays(fit_case(collectives, name, placement))
        for name in CASES
        for placement in ("rank0", "distributed")
    }


def interrupted(collectives: Collectives) -> dict[tuple[str, int], tuple[list[int], Result]]:
    """Stops in the given iteration, then fits again: how often each was called, and the second result."""
    outcomes = {}
    for placement in ("rank0", "distributed"):
        for stop in (1, 3):
            calls = [0]

            def at_boundary(calls: list[int] = calls, stop: int = stop) -> None:
                calls[0] += 1
                if calls[0] == stop:
                    raise Preempted("make room")

            try:
                fit_case(collectives, "mixture", placement, at_boundary)
            except Preempted:
                calls.append(-1)
            outcomes[placement, stop] = (calls, as_arrays(fit_case(collectives, "mixture", placement)))
    return outcomes


def refusals(collectives: Collectives) -> list[str]:
    """The errors of too few rows and of non-finite ones, which every rank meets."""
    messages = []
    for placement in ("rank0", "distributed"):
        try:
            fit_case(collectives, "constant", placement, num_clusters=31)
        except UsageError as error:
            messages.append(str(error))
        rows = normal(50, 3)
        rows[45, 1], rows[30, 2], rows[47] = torch.nan, torch.inf, -torch.inf
        shard = shard_of(rows, torch.arange(50) + 100, collectives.rank, collectives.world_size)
        try:
            KMeans(4, placement=placement).fit(shard, 150, collectives, torch.Generator())  # type: ignore[arg-type]
        except NonFiniteFeaturesError as error:
            messages.append(f"{error.sample_id}: {error}")
    return messages


def everything(collectives: Collectives) -> dict[str, Any]:
    """All of the above in one start of the processes."""
    return {
        "cases": every_case(collectives),
        "interrupted": interrupted(collectives),
        "refusals": refusals(collectives),
        "pca": _pca(collectives),
    }


def _pca(collectives: Collectives) -> tuple[np.ndarray, ...]:
    rows = normal(1000, 12) * torch.linspace(1, 3, 12) + 5
    own = shard_of(rows, torch.arange(1000), collectives.rank, collectives.world_size).features
    pca = fit_pca(lambda: iter(torch.split(own, 100)) if len(own) else iter(()), 5, True, 1e-4, collectives)
    return pca.mean.numpy(), pca.projection.numpy(), pca.eigenvalues.numpy()


def growth_while_clustering(collectives: Collectives, placement: Placement) -> float:
    """MiB by which the process grows, beyond its own 384 MiB of rows, while it clusters together with others."""
    num_rows = 393_216
    rows, sample_ids = (
        normal(num_rows, 256, seed=collectives.rank),
        torch.arange(num_rows) + collectives.rank * num_rows,
    )
    warm = FeatureShard(sample_ids[:2000] % num_rows, rows[:2000])
    KMeans(16, 2).fit(warm, num_rows, Collectives(), torch.Generator())  # libraries take their buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kmeans = KMeans(16, 2, placement=placement)
    shard = FeatureShard(sample_ids, rows)
    kmeans.fit(shard, num_rows * collectives.world_size, collectives, torch.Generator())
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
