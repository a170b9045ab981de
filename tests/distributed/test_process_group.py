"""From environment variables to the place of a process, and to the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcdist.distributed.place import Place, first_host, meeting_point, read_place
from dcdist.distributed.process_group import interface_towards, join
from dcdist.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "12",
    "SLURM_STEP_NUM_TASKS": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
    "SLURM_NODEID": "1",
}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1, 0, 1)),
        (TORCHRUN, Place(3, 4, 1, 2)),
        (SLURM, Place(5, 9, 1, 4)),
        (SLURM | {"SLURM_PROCID": "8", "SLURM_NODEID": "2", "SLURM_LOCALID": "0"}, Place(8, 9, 0, 1)),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, Place(0, 1, 0, 1)),
        (BATCH_SCRIPT, Place(0, 1, 0, 1)),
        (TORCHRUN | SLURM, Place(3, 4, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, Place(0, 2, 0, 1)),
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
        SLURM | {"SLURM_STEP_NUM_TASKS": "8(x2)"},
        SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,-"},
        SLURM | {"SLURM_NODEID": "3"},
    ],
)
def test_an_environment_that_makes_no_sense_is_named(environment: dict[str, str]) -> None:
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_ID" in environment else "RANK"
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
    missing = (
        "2 processes need MASTER_ADDR and MASTER_PORT in the environment to meet: set MASTER_ADDR to rank 0's machine"
    )
    with pytest.raises(UsageError, match=missing):
        join(Place(0, 2, 0, 2), torch.device("cpu"), 1.0, 1.0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="2 processes need MASTER_PORT in the environment"):
        join(Place(0, 2, 0, 2), torch.device("cpu"), 1.0, 1.0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003-007,011],big1", "gpu003"),
        ("gpu[011,013]-ib,big1", "gpu011-ib"),
        ("rack-a[2-3]n[07-08]", "rack-a2n07"),
        ("node-1.site.org,node-2.site.org", "node-1.site.org"),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_step_of_slurm_meets_on_its_first_node() -> None:
    step = SLURM | {"SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "n[3-5]"}
    assert meeting_point(step) == ("n3", 20_000 + 1717)
    assert meeting_point(step | {"SLURM_STEP_ID": "1"}) == ("n3", 20_000 + 1717 + 7)
    assert meeting_point(step | {"SLURM_RESTART_COUNT": "1"}) == ("n3", 20_000 + 1717 + 1)
    assert meeting_point(step | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert meeting_point(BATCH_SCRIPT) is None
    assert meeting_point({"RANK": "0", "WORLD_SIZE": "2"}) is None


BEGIN = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from dcdist.distributed.place import read_place
from dcdist.distributed.process_group import join
from dcdist.errors import PeerLost
torch.set_num_threads(1)
place, join_timeout, folder = read_place(), float(sys.argv[1]), sys.argv[2]
open(f"{folder}/{place.rank}", "w").close()
while "all" in sys.argv and len(os.listdir(folder)) < place.world_size:
    time.sleep(0.01)
"""
JOIN = """
try:
    collectives = join(place, torch.device("cpu"), join_timeout, 1800.0)
except PeerLost as error:
    os._exit(int(error.exit_code))
"""
TALK = """
print(collectives.rank, collectives.all_gather_objects(collectives.rank), flush=True)
dist.destroy_process_group()
"""
DIE_AFTER_MEETING = """
next(dist.rendezvous("env://", place.rank, place.world_size, timeout=timedelta(seconds=60)))
os._exit(9)
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts one of two processes: a script, how long it waits for the other one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    def process(rank: int, script: str, join_timeout: float, *more: str) -> subprocess.Popen[str]:
        place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        return subprocess.Popen(
            [sys.executable, "-c", BEGIN + script, str(join_timeout), str(tmp_path), *more],
            env=os.environ | {name: str(value) for name, value in place.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    return process


def outcomes(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    texts = [process.communicate(timeout=90)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


def test_processes_find_each_other(start: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [start(rank, JOIN + TALK, 60) for rank in range(2)]
    assert outcomes(processes) == [(0, "0 [0, 1]\n"), (0, "1 [0, 1]\n")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_is_a_lost_peer(rank: int, start: Callable[..., subprocess.Popen[str]]) -> None:
    assert outcomes([start(rank, JOIN, 1)]) == [(75, "")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_on_its_way_is_a_lost_peer(rank: int, start: Callable[..., subprocess.Popen[str]]) -> None:
    dying, waiting = start(rank, DIE_AFTER_MEETING, 60), start(1 - rank, JOIN, 5)
    assert outcomes([dying, waiting]) == [(9, ""), (75, "")]


def test_a_process_that_has_come_may_be_busy_for_longer(start: Callable[..., subprocess.Popen[str]]) -> None:
    busy = JOIN + "time.sleep(4 * collectives.rank)" + TALK
    assert outcomes([start(rank, busy, 2, "all") for rank in range(2)]) == [(0, "0 [0, 1]\n"), (0, "1 [0, 1]\n")]


def test_the_interface_is_the_one_that_leads_to_the_meeting_point() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("a-name-that-nobody-has.invalid") is None
