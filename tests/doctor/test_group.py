"""The process group: where processes meet, where they do not, and why."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdist.distributed.place import Place
from dcdist.doctor.check import Budget, Check
from dcdist.doctor.group import meet
from tests.doctor.helpers import ALONE, free_port, outcome, start


@pytest.fixture
def meeting_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    def set_meeting(host: str, port: object) -> None:
        monkeypatch.setenv("MASTER_ADDR", host)
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    return set_meeting


def failed_meeting(place: Place) -> Check:
    collectives, check = meet(place, Budget(20), 0.5)
    assert collectives is None
    assert check.name == "process group"
    assert check.state == "FAIL"
    return check


def test_one_process_meets_nobody() -> None:
    collectives, check = meet(ALONE, Budget(20), 1.0)
    assert collectives is not None
    assert collectives.world_size == 1
    assert check == Check("process group", "ok", "one process, nobody to meet")


def test_a_port_that_nobody_listens_at(meeting_at: Callable[[str, object], None]) -> None:
    port = free_port()
    meeting_at("127.0.0.1", port)
    began = time.monotonic()
    check = failed_meeting(Place(1, 2, 0, 1))
    assert time.monotonic() - began < 15
    assert f"nobody listens at 127.0.0.1:{port} (MASTER_ADDR:MASTER_PORT), tried for 0.5 s" in check.finding
    assert "is rank 0 started, MASTER_ADDR the address of its machine" in check.remedy


def test_peers_that_do_not_come(meeting_at: Callable[[str, object], None]) -> None:
    port = free_port()
    meeting_at("127.0.0.1", port)
    check = failed_meeting(Place(0, 2, 0, 2))
    assert check.finding == f"waited 0.5 s at 127.0.0.1:{port} (MASTER_ADDR:MASTER_PORT): 1 of 2 processes came"
    assert "are all 2 started (WORLD_SIZE)" in check.remedy


def test_a_port_that_is_taken(meeting_at: Callable[[str, object], None]) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        meeting_at("127.0.0.1", other.getsockname()[1])
        check = failed_meeting(Place(0, 2, 0, 2))
    assert "another program listens at 127.0.0.1" in check.finding
    assert "choose another MASTER_PORT" in check.remedy


@pytest.mark.parametrize(
    ("host", "port", "finding", "remedy"),
    [
        (
            "no-such-host.invalid",
            29500,
            "MASTER_ADDR=no-such-host.invalid does not resolve on ",
            "every machine resolves",
        ),
        ("127.0.0.1", "first", "MASTER_PORT='first' is no port", "set it to one from 1024"),
        ("192.0.2.1", 29500, "MASTER_ADDR=192.0.2.1 is no address of ", "must be the machine of rank 0"),
    ],
)
def test_a_meeting_point_that_is_none(
    host: str, port: object, finding: str, remedy: str, meeting_at: Callable[[str, object], None]
) -> None:
    meeting_at(host, port)
    check = failed_meeting(Place(0, 2, 0, 2))
    assert finding in check.finding
    assert remedy in check.remedy


def test_a_meeting_point_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    check = failed_meeting(Place(0, 2, 0, 2))
    assert "2 processes need MASTER_ADDR" in check.finding
    assert "start by torchrun or" in check.remedy
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert failed_meeting(Place(0, 2, 0, 2)).remedy.startswith(
        "before srun: export MASTER_ADDR=$(scontrol show hostnames"
    )


MEET = """
import os, sys, time
import torch
from dcdist.distributed.place import read_place
from dcdist.doctor.check import Budget
from dcdist.doctor.group import meet
place, folder = read_place(), sys.path[0]
open(os.environ["FOLDER"] + f"/{place.rank}", "w").close()
while len(os.listdir(os.environ["FOLDER"])) < 2:
    time.sleep(0.01)
print("\\n".join(meet(place, Budget(30), 2.0)[1].lines()), flush=True)
os._exit(0)
"""


def test_a_wrong_world_size(tmp_path: Path) -> None:
    place = {"WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    processes = [start(MEET, RANK=rank, FOLDER=tmp_path, **place) for rank in range(2)]
    first, second = (outcome(process)[1] for process in processes)
    assert "2 of 3 processes came" in first
    assert "are all 3 started (WORLD_SIZE)" in first
    assert "not all 3 processes came to 127.0.0.1" in second or "nobody listens at" in second
    assert "remedy: " in second


def test_sums_over_two_processes(of_two_processes: list[dict[str, list[Check]]]) -> None:
    host = re.escape(socket.gethostname())
    for checks in of_two_processes:
        right, wrong = checks["sums"]
        assert right.state == "ok"
        assert re.fullmatch(rf"2 processes \(2 on {host}\), all-reduce by gloo \S+ ms", right.finding)
        assert (wrong.state, wrong.finding) == ("FAIL", "a sum over all ranks is 3, not 6")
        assert "the same WORLD_SIZE" in wrong.remedy
