"""Runs a function in several real processes joined by gloo, for tests of what must not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dcdist.distributed.collectives import Collectives


def run_processes(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """`function(collectives, *args)` on each rank; the results in rank order. One process runs in place.

    The function lives at the top level of a module; results pickle (tensors go as NumPy arrays).
    """
    if world_size == 1:
        return [function(Collectives(), *args)]
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        queue: Any = context.Queue()
        processes = [
            context.Process(target=_worker, args=(function, rank, world_size, f"{folder}/store", queue, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            results = dict(_take(queue.get(timeout=120)) for _ in processes)
        finally:
            for process in processes:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
    return [results[rank] for rank in range(world_size)]


def _take(message: tuple[int, bool, Any]) -> tuple[int, Any]:
    rank, succeeded, result = message
    if not succeeded:
        raise AssertionError(f"rank {rank} failed:\n{result}")
    return rank, result


def _worker(
    function: Callable[..., Any], rank: int, world_size: int, store: str, queue: Any, args: tuple[Any, ...]
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    try:
        queue.put((rank, True, function(Collectives(rank, world_size), *args)))
        dist.barrier()
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))
    finally:
        dist.destroy_process_group()
