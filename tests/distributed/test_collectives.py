"""Every collective on one, two and three processes; lost peers are noticed as such."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcdist.distributed.collectives import Collectives, is_peer_lost
from dcdist.errors import PeerLost, RunError, UsageError
from tests.distributed.processes import run_processes

# Rows of each rank; ranks without any at the end and in the middle.
ROWS = {1: [[3]], 2: [[2, 5], [0, 4], [3, 0], [0, 0]], 3: [[1, 2, 3], [2, 0, 4], [0, 3, 0], [5, 0, 0], [0, 0, 2]]}


def rows_of(rank: int, counts: list[int], dtype: torch.dtype, width: int = 4) -> torch.Tensor:
    """Each value is known by the rank, row and column that it comes from."""
    values = 100 * rank + 10 * torch.arange(counts[rank]).unsqueeze(1) + torch.arange(width)
    return values.to(dtype)


def all_rows(counts: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([rows_of(rank, counts, dtype) for rank in range(len(counts))])


def use_every_collective(collectives: Collectives) -> None:
    """On each rank; a failed assertion fails the test."""
    rank, size = collectives.rank, collectives.world_size
    assert collectives.is_main is (rank == 0)
    reductions(collectives, rank, size)
    broadcasts(collectives, rank, size)
    rows(collectives, rank, size)
    agreements(collectives, rank, size)
    errors_on_main(collectives, rank)
    errors_on_any(collectives, rank, size)


def reductions(collectives: Collectives, rank: int, size: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensor = torch.tensor([rank + 1, 10 * rank], dtype=dtype)
        assert collectives.all_reduce_sum(tensor) is tensor
        assert tensor.tolist() == [sum(range(1, size + 1)), 10 * sum(range(size))]
        tensor = torch.tensor([[-rank, rank]], dtype=dtype)
        assert collectives.all_reduce_max(tensor) is tensor
        assert tensor.tolist() == [[0, size - 1]]


def broadcasts(collectives: Collectives, rank: int, size: int) -> None:
    for source in range(size):
        tensor = torch.full((2, 3), float(rank))
        assert collectives.broadcast(tensor, source) is tensor
        assert bool((tensor == source).all())
    value = {"from": rank, "list": [rank] * 3}
    assert collectives.broadcast_object(value) == {"from": 0, "list": [0, 0, 0]}
    assert collectives.all_gather_objects(("rank", rank)) == [("rank", other) for other in range(size)]


def rows(collectives: Collectives, rank: int, size: int) -> None:
    for counts in ROWS[size]:
        for dtype in (torch.float32, torch.float16, torch.int32):
            own = rows_of(rank, counts, dtype)
            expected = all_rows(counts, dtype)
            assert collectives.row_counts(own) == counts
            gathered = collectives.gather_rows(own)
            if rank == 0:
                assert gathered is not None
                assert gathered.dtype == dtype
                assert torch.equal(gathered, expected)
            else:
                assert gathered is None
            everywhere = collectives.all_gather_rows(own)
            assert everywhere.dtype == dtype
            assert torch.equal(everywhere, expected)
            assert torch.equal(own, rows_of(rank, counts, dtype)), "what was given is not changed"
        transposed = rows_of(rank, counts, torch.float32).T.contiguous().T  # not contiguous
        everywhere = collectives.all_gather_rows(transposed)
        gathered = collectives.gather_rows(transposed)
        assert torch.equal(everywhere, all_rows(counts, torch.float32))
        assert gathered is None or torch.equal(gathered, everywhere)
        flat = collectives.all_gather_rows(rows_of(rank, counts, torch.int64)[:, 0])
        assert torch.equal(flat, all_rows(counts, torch.int64)[:, 0])


def agreements(collectives: Collectives, rank: int, size: int) -> None:
    assert collectives.any_rank(rank == size - 1) is True
    assert collectives.any_rank(False) is False
    assert collectives.largest(rank - 5) == size - 6
    collectives.barrier()


def errors_on_main(collectives: Collectives, rank: int) -> None:
    ran = []
    assert collectives.on_main(lambda: ran.append(rank) or {"rank": rank}) == {"rank": 0}
    assert ran == ([0] if rank == 0 else [])
    assert collectives.on_main(lambda: None) is None

    def refuse() -> None:
        raise UsageError(f"rank {rank} says no")

    with pytest.raises(UsageError, match="rank 0 says no"):
        collectives.on_main(refuse)

    def fail() -> None:
        raise RunError(f"damaged, says rank {rank}")

    with pytest.raises(RunError, match="damaged, says rank 0"):
        collectives.on_main(fail)

    def stumble() -> None:
        raise ZeroDivisionError(f"a bug on rank {rank}")

    with pytest.raises(RunError if rank else ZeroDivisionError, match="a bug on rank 0"):
        collectives.on_main(stumble)
    assert collectives.on_main(lambda: "and on") == "and on"


def errors_on_any(collectives: Collectives, rank: int, size: int) -> None:
    assert collectives.on_all(lambda: rank + 10) == rank + 10
    last = size - 1

    def fail(error: Exception, only: int) -> None:
        if rank >= only:
            raise error

    says = rf"rank {last} on .*: no" if last else "no"
    with pytest.raises(UsageError, match=says):
        collectives.on_all(lambda: fail(UsageError("no"), last))
    with pytest.raises(UsageError, match=r"^wrong$"):
        collectives.on_all(lambda: fail(RunError("no") if rank else UsageError("wrong"), 0))
    with pytest.raises(UsageError if last else RunError, match="wrong" if last else "no"):
        collectives.on_all(lambda: fail(UsageError("wrong") if rank else RunError("no"), 0))
    with pytest.raises(RunError, match=r"storage failed: .*full"):
        collectives.on_all(lambda: fail(OSError(28, "full"), last))
    with pytest.raises(ZeroDivisionError if rank == last else RunError, match="a bug"):
        collectives.on_all(lambda: fail(ZeroDivisionError("a bug"), last))
    assert collectives.on_all(lambda: "and on") == "and on"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_collective(world_size: int) -> None:
    run_processes(use_every_collective, world_size)


def test_with_one_process_rows_are_not_copied() -> None:
    rows = torch.zeros(3, 2)
    assert Collectives().gather_rows(rows) is rows
    assert Collectives().all_gather_rows(rows) is rows


LOSING_A_PEER = """
import os, signal, sys
from datetime import timedelta
import torch, torch.distributed as dist
from dcdist.distributed.collectives import Collectives
from dcdist.errors import PeerLost

torch.set_num_threads(1)
store, rank, operation = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3, timeout=timedelta(seconds=120))
collectives = Collectives(rank, 3)
collectives.barrier()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
operations = {
    "all_reduce_sum": lambda: collectives.all_reduce_sum(torch.ones(1000)),
    "broadcast": lambda: collectives.broadcast(torch.ones(1000), source=1),
    "all_gather_objects": lambda: collectives.all_gather_objects("x"),
    "all_gather_rows": lambda: collectives.all_gather_rows(torch.ones(10, 4)),
    "on_main": lambda: collectives.on_main(lambda: "x"),
}
try:
    for _ in range(100):  # a message to a dead peer may be buffered once
        operations[operation]()
except PeerLost as error:
    print("PeerLost", error, flush=True)
    os._exit(int(error.exit_code))
os._exit(0)
"""


@pytest.mark.parametrize("operation", ["all_reduce_sum", "all_gather_rows"])
def test_a_killed_peer_is_noticed_by_the_survivors(operation: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOSING_A_PEER, str(tmp_path / "store")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    processes = [
        subprocess.Popen([*command, str(rank), operation], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(3)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, -signal.SIGKILL, 75]
    assert outputs[0].startswith("PeerLost another process of the run died or stopped answering")
    assert outputs[2].startswith("PeerLost another process of the run died or stopped answering")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3"), True),
        (torch.distributed.DistStoreError("timed out after 2 seconds"), True),
        (torch.distributed.DistNetworkError("address in use"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("connection closed by peer"), False),
        (PeerLost("x"), False),
    ],
)
def test_which_errors_of_torch_mean_a_lost_peer(error: Any, expected: bool) -> None:
    assert is_peer_lost(error) is expected
