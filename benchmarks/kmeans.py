"""k-means beside one call of faiss.Clustering: wall time, processor time, memory and objective.

    python -m benchmarks.kmeans [--data mixture|normal] [--repeats 3] [--json FILE]

Every side starts from the same centroids, runs in processes of its own and ends with each row's nearest centroid;
sides take turns, the table has medians. `normal` has no clusters at all, the worst case for bounds that spare searches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

NUM_PROCESSES = {"faiss": 1, "rank0": 1, "rank0-faiss": 1, "distributed": 2}
TITLES = {
    "faiss": "faiss.Clustering, one call, and its search",
    "rank0": "dcdist, rank0",
    "rank0-faiss": "dcdist, rank0, engine faiss",
    "distributed": "dcdist, distributed on 2 processes",
}
NUM_THREADS = 2  # in all


def make_rows(kind: str, num_rows: int, num_features: int, num_clusters: int) -> np.ndarray:
    """Rows [N, D] float32 of length 1."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((num_rows, num_features), dtype=np.float32)
    if kind == "mixture":
        modes = generator.standard_normal((2 * num_clusters, num_features), dtype=np.float32)
        rows += modes[generator.integers(len(modes), size=num_rows)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def cluster_by_faiss(rows: np.ndarray, initial: np.ndarray, num_iterations: int) -> float:
    """The objective of faiss' own k-means, its defaults overridden so that it takes every row."""
    import faiss

    num_clusters, num_features = initial.shape
    faiss.omp_set_num_threads(NUM_THREADS)
    clustering = faiss.Clustering(num_features, num_clusters)
    clustering.niter = num_iterations
    clustering.max_points_per_centroid, clustering.min_points_per_centroid = 10**9, 1
    faiss.copy_array_to_vector(initial.ravel(), clustering.centroids)
    index = faiss.IndexFlatL2(num_features)
    clustering.train(rows, index)
    distances, _ = index.search(rows, 1)
    return float(distances.mean(dtype=np.float64))


def cluster_by_dcdist(
    rows: np.ndarray, initial: np.ndarray, num_iterations: int, side: str, rank: int, store: str
) -> tuple[Any, Any]:
    """What to call for the objective, after everything that is not clustering is done; what to call at the end."""
    import torch
    import torch.distributed as dist

    from dcdist.clustering.kmeans import KMeans
    from dcdist.clustering.types import FeatureShard
    from dcdist.distributed.collectives import Collectives

    num_processes = NUM_PROCESSES[side]
    torch.set_num_threads(NUM_THREADS // num_processes)
    if num_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
    placement, _, engine = side.partition("-")
    kmeans = KMeans(len(initial), num_iterations, placement, engine=engine or "auto")  # type: ignore[arg-type]
    shard = FeatureShard(torch.arange(len(rows)) + rank * len(rows), torch.from_numpy(rows))
    collectives = Collectives(rank, num_processes)
    centroids = torch.from_numpy(initial)

    def cluster() -> float:
        num_samples = len(rows) * num_processes
        return kmeans.fit(shard, num_samples, collectives, torch.Generator(), initial_centroids=centroids).objective

    collectives.barrier()
    return cluster, dist.destroy_process_group if num_processes > 1 else lambda: None


def run_process(side: str, rank: int, folder: Path, num_iterations: int) -> dict[str, float]:
    """One process of a side: what it took."""
    initial = np.load(folder / "initial.npy")
    size = (folder / "rows").stat().st_size // NUM_PROCESSES[side]
    rows = np.fromfile(folder / "rows", np.float32, size // 4, offset=rank * size).reshape(-1, initial.shape[1])
    if side == "faiss":
        import faiss  # noqa: F401

        cluster, close = lambda: cluster_by_faiss(rows, initial, num_iterations), lambda: None
    else:
        cluster, close = cluster_by_dcdist(
            rows, initial, num_iterations, side, rank, str(folder / f"store-{os.getppid()}")
        )
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    objective = cluster()
    after, stop = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    close()
    return {
        "wall_seconds": stop - start,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "before_mib": before.ru_maxrss / 1024,
        "peak_mib": after.ru_maxrss / 1024,
        "objective": objective,
    }


def run_side(side: str, folder: Path, num_iterations: int) -> dict[str, float]:
    """All processes of a side; wall time is the slowest's, memory the first's, processor time the sum."""
    num_processes = NUM_PROCESSES[side]
    environment = {**os.environ, "OMP_NUM_THREADS": str(NUM_THREADS // num_processes)}
    command = [sys.executable, "-m", "benchmarks.kmeans", "--side", side, "--folder", str(folder)]
    command += ["--num-iterations", str(num_iterations), "--rank"]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(num_processes)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{side} failed")
    for store in folder.glob("store-*"):
        store.unlink()
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        **results[0],
        "wall_seconds": max(result["wall_seconds"] for result in results),
        "cpu_seconds": sum(result["cpu_seconds"] for result in results),
        "peak_mib_all": sum(result["peak_mib"] for result in results),
    }


def table(medians: dict[str, dict[str, float]], data_mib: float) -> str:
    lines = [
        f"| side | wall s | CPU s | of faiss | peak MiB of rank 0 (data {data_mib:.0f}) | grew by | objective |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side, row in medians.items():
        share = row["cpu_seconds"] / medians["faiss"]["cpu_seconds"]
        growth = row["peak_mib"] - row["before_mib"]
        lines.append(
            f"| {TITLES[side]} | {row['wall_seconds']:.2f} | {row['cpu_seconds']:.2f} | {share:.0%} | "
            f"{row['peak_mib']:.0f} | {growth:.0f} | {row['objective']:.7f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("mixture", "normal"), default="mixture")
    parser.add_argument("--num-rows", type=int, default=200_000)
    parser.add_argument("--num-features", type=int, default=256)
    parser.add_argument("--num-clusters", type=int, default=1000)
    parser.add_argument("--num-iterations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    parser.add_argument("--side", choices=NUM_PROCESSES, help=argparse.SUPPRESS)  # a process of the benchmark itself
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_process(arguments.side, arguments.rank, arguments.folder, arguments.num_iterations)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(arguments.data, arguments.num_rows, arguments.num_features, arguments.num_clusters)
        rows.tofile(folder / "rows")
        drawn = np.random.default_rng(1).choice(len(rows), arguments.num_clusters, replace=False)
        np.save(folder / "initial.npy", rows[drawn])
        data_mib = rows.nbytes / 2**20
        del rows
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in NUM_PROCESSES}
        for _ in range(arguments.repeats):
            for side in NUM_PROCESSES:
                runs[side].append(run_side(side, folder, arguments.num_iterations))
    medians = {
        side: {name: statistics.median(run[name] for run in results) for name in results[0]}
        for side, results in runs.items()
    }
    print(
        f"{arguments.num_rows:,} x {arguments.num_features}, K = {arguments.num_clusters:,}, "
        f"{arguments.num_iterations} iterations, {arguments.data}, median of {arguments.repeats}\n"
    )
    print(table(medians, data_mib))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"arguments": vars(arguments), "medians": medians, "runs": runs}, default=str)
        )


if __name__ == "__main__":
    main()
