"""Real processes on this machine: their places, their ends, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dcdist.config.schema import LaunchSection
from dcdist.errors import ExitCode, UsageError
from dcdist.launch.base import JobSpec
from dcdist.launch.local import LocalLauncher, combined_exit_code, count_gpus, local_job

ROOT = Path(__file__).resolve().parents[2]


def job(script: str, num_processes: int = 2) -> JobSpec:
    return JobSpec((sys.executable, "-c", script), num_processes, threads_per_process=3)


def test_places_are_in_the_environment(tmp_path: Path) -> None:
    script = f"""
import json, os
with open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w") as file:
    json.dump(dict(os.environ), file)
"""
    assert LocalLauncher().submit(job(script)).wait() is ExitCode.DONE
    places = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    for rank, place in enumerate(places):
        assert place["RANK"] == place["LOCAL_RANK"] == str(rank)
        assert place["WORLD_SIZE"] == place["LOCAL_WORLD_SIZE"] == "2"
        assert place["MASTER_ADDR"] == "127.0.0.1"
        assert place["OMP_NUM_THREADS"] == "3"
    assert places[0]["MASTER_PORT"] == places[1]["MASTER_PORT"]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([0, 75], 75),
        ([3, 75], 3),
        ([3, 0], 3),
        ([1, 75], 1),
        ([1, 3], 1),
        ([2, 1], 2),
        ([-signal.SIGKILL, 75], 75),
        ([-signal.SIGTERM, 0], 75),
        ([-signal.SIGSEGV, 75], 1),
        ([42, 0], 1),
    ],
)
def test_many_codes_become_one(codes: list[int], expected: int) -> None:
    assert combined_exit_code(codes) == expected
    assert combined_exit_code(codes[::-1]) == expected


def test_survivors_of_a_dead_process_are_ended() -> None:
    script = "import os, sys, time\nsys.exit(1) if os.environ['RANK'] == '1' else time.sleep(600)"
    handle = LocalLauncher(survivor_seconds=0.3).submit(job(script, 3))
    assert handle.wait() is ExitCode.FAILURE
    assert [process.returncode for process in handle.processes] == [-signal.SIGKILL, 1, -signal.SIGKILL]


WAITING = """
import signal, sys, time
signal.signal({number}, lambda *_: sys.exit(75))
open({folder!r} + "/" + __import__("os").environ["RANK"], "w").close()
time.sleep(600)
"""
LAUNCHING = """
import sys
from dcdist.launch.base import JobSpec
from dcdist.launch.local import LocalLauncher
sys.exit(LocalLauncher().submit(JobSpec((sys.executable, "-c", {script!r}), 2, 1)).wait())
"""


def launch(tmp_path: Path, number: int) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A launcher process and its two ranks, which wait for the signal."""
    script = LAUNCHING.format(script=WAITING.format(number=number, folder=str(tmp_path)))
    launcher = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 30
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return launcher, psutil.Process(launcher.pid).children()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_signals_go_on_to_every_process(number: signal.Signals, tmp_path: Path) -> None:
    launcher, ranks = launch(tmp_path, number)
    assert len(ranks) == 2
    launcher.send_signal(number)
    assert launcher.wait(30) == 75


def test_a_signal_before_the_waiting_begins_goes_on_too(tmp_path: Path) -> None:
    script = LAUNCHING.format(script=WAITING.format(number=signal.SIGTERM, folder=str(tmp_path))).replace(
        "sys.exit(LocalLauncher()",
        "import os, pathlib, signal, time\n"
        "def both_wait():\n"
        f"    while len(list(pathlib.Path({str(tmp_path)!r}).iterdir())) < 2:\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return handle\n"
        "handle = (LocalLauncher()",
    )
    script = script.replace(").wait())", "))\nsys.exit(both_wait().wait())")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 75


def test_a_process_that_cannot_start_takes_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def second_fails(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(popen(*args, **kwargs))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", second_fails)
    with pytest.raises(BlockingIOError):
        LocalLauncher().submit(job("import time; time.sleep(600)"))
    assert started[0].wait(10) == -signal.SIGKILL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_killed_launcher_leaves_nothing_behind(tmp_path: Path) -> None:
    launcher, ranks = launch(tmp_path, signal.SIGTERM)
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert alive == []


@pytest.mark.parametrize(("visible", "count"), [("0,1,2", 3), ("", 0), ("-1", 0), ("GPU-8a,GPU-9b", 2), ("MIG-1", 1)])
def test_gpus_are_those_that_the_job_owns(visible: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count
    assert local_job(LaunchSection(device="auto"), ("train",)).num_processes == max(1, count)


def test_processes_and_threads_of_a_config() -> None:
    cores = len(os.sched_getaffinity(0))
    one = local_job(LaunchSection(device="cpu"), ("train", "config.yaml"))
    assert one == JobSpec((sys.executable, "-m", "dcdist", "train", "config.yaml"), 1, cores)
    many = local_job(LaunchSection(device="cpu", num_processes=2 * cores), ())
    assert (many.num_processes, many.threads_per_process) == (2 * cores, 1)
    assert local_job(LaunchSection(threads_per_process=7, device="cpu"), ()).threads_per_process == 7


MEETING = {"MASTER_ADDR": "digits-0.digits", "MASTER_PORT": "29500"}


def test_a_machine_of_several_starts_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {"NODE_RANK": "1", "NUM_NODES": "3", **MEETING}
    planned = local_job(LaunchSection(num_processes=6), ("train",), environment)
    assert (planned.num_processes, planned.node_rank, planned.num_nodes) == (2, 1, 3)
    for name, value in MEETING.items():
        monkeypatch.setenv(name, value)
    script = f"""
import json, os
with open({str(tmp_path)!r} + "/" + os.environ["LOCAL_RANK"], "w") as file:
    json.dump(dict(os.environ), file)
"""
    command = (sys.executable, "-c", script)
    assert LocalLauncher().submit(JobSpec(command, 2, 1, node_rank=1, num_nodes=3)).wait() is ExitCode.DONE
    places = [json.loads((tmp_path / str(local_rank)).read_text()) for local_rank in (0, 1)]
    assert [place["RANK"] for place in places] == ["2", "3"]
    assert {place["WORLD_SIZE"] for place in places} == {"6"}
    assert {(place["MASTER_ADDR"], place["MASTER_PORT"]) for place in places} == {tuple(MEETING.values())}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NUM_NODES": "2", **MEETING}, "NODE_RANK=None"),
        ({"NODE_RANK": "2", "NUM_NODES": "2", **MEETING}, "expected 0 <= NODE_RANK < NUM_NODES"),
        ({"NODE_RANK": "0", "NUM_NODES": "2", "MASTER_PORT": "1"}, "MASTER_ADDR=None"),
        ({"NODE_RANK": "first", "NUM_NODES": "2", **MEETING}, "NODE_RANK='first'"),
        ({"NODE_RANK": "0", "NUM_NODES": "4", **MEETING}, "launch.num_processes=6 does not share out to NUM_NODES=4"),
    ],
)
def test_machines_that_do_not_go_together_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        local_job(LaunchSection(num_processes=6), ("train",), environment)
    assert message in str(error.value)
