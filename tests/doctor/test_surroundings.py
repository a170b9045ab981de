"""Signals, clocks, limits and the launcher."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdist.distributed.collectives import Collectives
from dcdist.doctor import surroundings
from dcdist.doctor.cgroup import Room
from dcdist.doctor.check import Budget, Check
from dcdist.doctor.clocks import check_clocks, storage_offset
from dcdist.doctor.surroundings import (
    check_launcher,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_signals,
)
from tests.doctor.helpers import ALONE, outcome, start
from tests.doctor.two_processes import CLOCK_OFFSETS

# --- signals ----------------------------------------------------------------------------------------------------------


def test_signals_arrive_and_handlers_are_put_back() -> None:
    def handler(*_: object) -> None:
        pytest.fail("reached the handler from before")

    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = {number: signal.signal(number, handler) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        check = check_signals()
        assert [signal.getsignal(number) for number in numbers] == [handler] * 3
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    assert check == Check("signals", "ok", "SIGUSR2 and SIGTERM set the flag of a run")


SIGNALS = """
import signal
from dcdist.doctor.surroundings import check_signals
before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print("\\n".join(check_signals().lines()))
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
assert not signal.sigpending()
"""


def test_a_blocked_signal() -> None:
    process = start(SIGNALS, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) and None)
    code, output = outcome(process)
    assert code == 0
    assert output.startswith(
        "FAIL  signals        SIGTERM blocked since the start: never delivered; SIGUSR2 set the flag"
    )
    assert "remedy: whatever starts dcdist blocks them" in output


def test_an_ignored_signal() -> None:
    process = start(SIGNALS, lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN) and None)
    code, output = outcome(process)
    assert code == 0
    assert output.startswith("warn  signals        SIGUSR2 ignored since the start: lost until a run has installed")
    assert "SIGUSR2 and SIGTERM set the flag of a run" in output
    assert "remedy: take `trap '' ...` out of the script" in output


def test_a_signal_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_DELIVERY_SECONDS", 0.01)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    check = check_signals()
    assert (check.state, check.finding) == ("FAIL", "SIGUSR2 and SIGTERM sent to this process did not set the flag")
    assert "another library took them over" in check.remedy


def test_signals_cannot_be_tried_beside_the_main_thread() -> None:
    assert Budget(10).call(5, check_signals).state == "warn"


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_clocks_of_two_processes(of_two_processes: list[dict[str, list[Check]]]) -> None:
    for checks in (of_rank["clocks"] for of_rank in of_two_processes):
        assert [check.state for check in checks] == ["ok", "warn", "FAIL"]
        assert re.fullmatch(r"2 processes within \d\.\d{3} s", checks[0].finding)
        for check, offset in zip(checks[1:], CLOCK_OFFSETS[1:], strict=True):
            off = re.search(r"a clock is (\S+) s off, that of rank 1 against rank 0", check.finding)
            assert off is not None
            assert float(off[1]) == pytest.approx(abs(offset), abs=1.5)
            assert "set the clocks by NTP" in check.remedy


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (5, "warn"), (-100, "FAIL")])
def test_the_clock_of_the_storage(seconds: float, state: str, tmp_path: Path) -> None:
    check = check_clocks(Collectives(), tmp_path, lambda: time.time() + seconds)
    assert check.state == state
    assert ("that of the storage of" in check.finding) == (state != "ok")
    assert storage_offset(tmp_path, lambda: time.time() + seconds) == pytest.approx(-seconds, abs=1)
    assert list(tmp_path.iterdir()) == []


def test_one_clock() -> None:
    check = check_clocks(Collectives(), None)
    assert check == Check("clocks", "ok", "one process and no path of storage: nothing to compare")


# --- limits -----------------------------------------------------------------------------------------------------------


def test_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1023, before[1]))
        few = check_open_files()
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        enough = check_open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (few.state, few.finding) == ("warn", "fewer than 1024 are allowed; up to 1023")
    assert re.fullmatch(r"ulimit -n \d+ before the start", few.remedy)
    assert enough == Check("open files", "ok", "up to 1024")


def test_shared_memory(tmp_path: Path, mount: Callable[..., Path]) -> None:
    missing = check_shared_memory(tmp_path / "shm")
    assert (missing.state, missing.finding) == ("warn", f"there is no {tmp_path}/shm")
    docker = check_shared_memory(mount("64m"))
    assert docker.state == "warn"
    assert docker.finding.startswith("too little for the batches")
    assert "--shm-size" in docker.remedy
    larger = mount("70m")
    assert check_shared_memory(larger).state == "ok"
    assert check_shared_memory(larger).finding == f"{larger}: 70 MiB free of 70 MiB"
    (larger / "left").write_bytes(bytes(7 << 20))
    assert check_shared_memory(larger).state == "warn"
    assert check_shared_memory(larger).remedy == f"remove what dead processes left in {larger}"


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "memory_room", lambda: None)
    assert re.fullmatch(r"\S+ GiB free of \S+ GiB on the machine", check_memory().finding)
    monkeypatch.setattr(surroundings, "memory_room", lambda: Room(2 << 30, 100 << 20))
    check = check_memory()
    assert check.state == "warn"
    assert check.finding.endswith("100 MiB of 2.0 GiB that this job may take")
    assert "sbatch --mem" in check.remedy


# --- launcher ---------------------------------------------------------------------------------------------------------


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
}
FOURTH, SIXTH = "rank 3 of 4, local rank 1 of 2", "rank 5 of 8, local rank 1 of 4"


@pytest.mark.parametrize(
    ("environment", "finding"),
    [
        ({}, "none: rank 0 of 1, local rank 0 of 1"),
        ({"NODE_RANK": "1", "NUM_NODES": "2"}, "none, machine 1 by NODE_RANK: rank 0 of 1, local rank 0 of 1"),
        (TORCHRUN, f"RANK and WORLD_SIZE in the environment: {FOURTH}"),
        (TORCHRUN | {"NODE_RANK": "1"}, f"RANK and WORLD_SIZE in the environment, machine 1 by NODE_RANK: {FOURTH}"),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}, f"torchrun: {FOURTH}"),
        (TORCHRUN | {"RAY_JOB_ID": "x"}, f"Ray: {FOURTH}"),
        (SLURM, f"SLURM step 7.0: {SIXTH}"),
    ],
)
def test_launchers_are_recognised(environment: dict[str, str], finding: str) -> None:
    place, check = check_launcher(environment)
    assert check == Check("launcher", "ok", finding)
    assert f"rank {place.rank} of {place.world_size}, local rank {place.local_rank} of" in finding


def test_a_launcher_that_makes_no_sense() -> None:
    place, check = check_launcher(TORCHRUN | {"RANK": "4"})
    assert place == ALONE
    assert check.state == "FAIL"
    assert "RANK='4'" in check.finding
    assert "start it by srun, torchrun or" in check.remedy


def test_a_batch_script_without_srun() -> None:
    _, check = check_launcher({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})
    assert check.state == "warn"
    assert check.finding.startswith("this process is alone in a SLURM job of 8 tasks")
    assert check.remedy == "start it by srun: srun dcdist doctor"


def test_torchrun_that_keeps_the_signal_of_slurm() -> None:
    environment = TORCHRUN | {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT"}
    assert check_launcher(environment)[1].state == "ok"
    check = check_launcher(environment | {"SLURM_JOB_ID": "7"})[1]
    assert check.state == "warn"
    assert check.remedy == "torchrun --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
    handled = {"SLURM_JOB_ID": "7", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR2"}
    assert check_launcher(environment | handled)[1].state == "ok"
