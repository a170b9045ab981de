"""From environment variables to the place of a process, and to the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from dcdist.distributed.process_group import Place, join, read_place
from dcdist.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1, 0, 1)),
        (TORCHRUN, Place(3, 4, 1, 2)),
        (SLURM, Place(5, 8, 1, 4)),
        (TORCHRUN | SLURM, Place(3, 4, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, Place(0, 2, 0, 1)),
        ({"SLURM_PROCID": "0"}, Place(0, 1, 0, 1)),
        ({"SLURM_NTASKS": "8"}, Place(0, 1, 0, 1)),
    ],
)
def test_place(environment: dict[str, str], place: Place) -> None:
    assert read_place(environment) == place


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        TORCHRUN | {"RANK": "first"},
        TORCHRUN | {"LOCAL_RANK": ""},
        TORCHRUN | {"RANK": "4"},
        TORCHRUN | {"RANK": "-1"},
        TORCHRUN | {"WORLD_SIZE": "0"},
        SLURM | {"SLURM_NTASKS": "8(x2)"},
    ],
)
def test_an_environment_that_makes_no_sense_is_named(environment: dict[str, str]) -> None:
    name = "SLURM_NTASKS" if "SLURM_NTASKS" in environment else "RANK"
    with pytest.raises(UsageError, match="the environment describes no process group") as error:
        read_place(environment)
    assert f"{name}={environment.get(name)!r}" in str(error.value)


def test_one_process_joins_nobody() -> None:
    collectives = join(Place(0, 1, 0, 1), torch.device("cpu"), 1.0, 1.0)
    assert (collectives.rank, collectives.world_size) == (0, 1)
    assert not torch.distributed.is_initialized()


def test_a_missing_meeting_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UsageError, match="2 processes need MASTER_ADDR and MASTER_PORT in the environment"):
        join(Place(0, 2, 0, 2), torch.device("cpu"), 1.0, 1.0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="2 processes need MASTER_PORT in the environment"):
        join(Place(0, 2, 0, 2), torch.device("cpu"), 1.0, 1.0)


JOIN = """
import os, sys
import torch
from dcdist.distributed.process_group import join, read_place
from dcdist.errors import PeerLost
torch.set_num_threads(1)
try:
    collectives = join(read_place(), torch.device("cpu"), float(sys.argv[1]), 1800.0)
except PeerLost as error:
    os._exit(int(error.exit_code))
print(collectives.rank, collectives.all_gather_objects(collectives.rank), flush=True)
torch.distributed.destroy_process_group()
"""


def start(rank: int, world_size: int, port: int, timeout_seconds: float) -> subprocess.Popen[str]:
    place = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(timeout_seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_processes_find_each_other() -> None:
    port = free_port()
    processes = [start(rank, 2, port, 60) for rank in range(2)]
    assert [process.communicate(timeout=90)[0] for process in processes] == ["0 [0, 1]\n", "1 [0, 1]\n"]
    assert [process.returncode for process in processes] == [0, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_is_a_lost_peer(rank: int) -> None:
    process = start(rank, 2, free_port(), 1)
    assert process.communicate(timeout=90)[0] == ""
    assert process.returncode == 75
