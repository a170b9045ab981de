"""What `dcdist status` says of runs in each state, read from nothing but their folders."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dcdist.cli import main
from dcdist.errors import UsageError
from dcdist.run_directory import RunDirectory
from dcdist.status import read_status
from tests.runs.conftest import digits_folder, experiment  # noqa: F401
from tests.runs.processes import run, start_run, write_config

HEARTBEAT = {
    "stage": "deepcluster",
    "phase": "train",
    "epoch": 4,
    "num_epochs": 10,
    "step": 50,
    "until_step": 100,
    "samples_per_step": 64,
    "samples_per_second": 128.0,
    "loss": 2.5,
}


def begun(folder: Path, heartbeat: dict[str, Any] | None, age: float = 0.0) -> RunDirectory:
    """A run whose only attempt has begun from nothing, its heartbeat so many seconds old."""
    directory = RunDirectory(str(folder))
    description = {"num_processes": 2, "launcher": {"name": "slurm", "job": "12_3", "restart_count": 0}}
    directory.begin_attempt(description).record_beginning(None)
    if heartbeat is not None:
        then = time.time() - age
        content = json.dumps({"time": then, "progressed": then, **heartbeat})
        directory.storage.write_bytes(directory.heartbeat_file(1), content.encode())
    return directory


def test_running(tmp_path: Path) -> None:
    begun(tmp_path, HEARTBEAT)
    status = read_status(str(tmp_path))
    assert status.state == "running"
    assert (status.epoch, status.step, status.samples_per_second) == (4, 50, 128.0)
    assert status.remaining_seconds == 50 * 64 / 128
    assert status.lines() == [
        f"{tmp_path}: running",
        "deepcluster, epoch 5 of 10, step 50 of 100, train",
        "loss 2.5000, 128 samples/s, 25 s left",
        "no checkpoint yet",
        "last sign of progress 0 s ago",
        "attempt 1, 0 restarts, 0 steps repeated; 2 processes, slurm job 12_3",
    ]


def test_stopping_and_what_a_stop_of_a_waiting_job_says(tmp_path: Path) -> None:
    directory = begun(tmp_path, HEARTBEAT)
    directory.request_stop()
    assert read_status(str(tmp_path)).state == "stopping"
    directory.begin_attempt({"launcher": {"name": "slurm", "job": "7"}}).record_end(75, "Preempted: SIGTERM", "SIGTERM")
    status = read_status(str(tmp_path))
    assert (status.state, status.restarts, status.reason) == ("preempted", 1, "Preempted: SIGTERM")
    with pytest.raises(UsageError, match=r"ended already .* waits to start again: scancel 7$"):
        directory.request_stop()


@pytest.mark.parametrize(("age", "state"), [(0.0, "starting"), (29.0, "starting"), (31.0, "silent")])
def test_silent_when_heartbeats_stop(tmp_path: Path, age: float, state: str) -> None:
    begun(tmp_path, {}, age)
    assert read_status(str(tmp_path)).state == state


@pytest.mark.parametrize(
    ("code", "state"), [(0, "done"), (1, "failed"), (2, "refused"), (3, "stopped"), (75, "preempted")]
)
def test_ends(tmp_path: Path, code: int, state: str) -> None:
    directory = begun(tmp_path, HEARTBEAT, age=1000.0)
    directory.begin_attempt({"launcher": {"name": "local"}}).record_end(code, "why")
    status = read_status(str(tmp_path))
    assert (status.state, status.reason) == (state, None if code == 0 else "why")
    assert status.samples_per_second is None


def test_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["status", str(tmp_path)])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"dcdist: {tmp_path} has no attempts: is this a run's folder (run.dir)?\n"


def test_of_a_real_run_killed_and_resumed(tmp_path: Path, digits_folder: Path) -> None:  # noqa: F811
    config = write_config(tmp_path / "config.yaml", experiment(digits_folder, tmp_path / "run"))
    running = start_run(
        config, ["checkpoint.every_num_steps=4"], environment={"DCDIST_FAULT": "train:step:11:*:SIGSTOP"}
    )
    running.wait_until_stopped()
    status = read_status(str(tmp_path / "run"))
    assert (status.state, status.step, status.epoch, status.until_step) == ("running", 11, 1, 21)
    assert status.last_checkpoint == "step-00000008-train.0001"
    running.signal(signal.SIGKILL)
    assert running.wait() == [-signal.SIGKILL]
    assert run(config) == [0]
    done = subprocess.run(
        [sys.executable, "-m", "dcdist", "status", str(tmp_path / "run"), "--json"], capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["state"], found["step"], found["restarts"], found["repeated_steps"]) == ("done", 21, 1, 3)
    assert found["last_checkpoint"] == "step-00000021-final.0002"
    assert 0 <= found["last_checkpoint_age_seconds"] < 60
    assert json.loads((tmp_path / "run/attempts/0002.json").read_text())["repeated_steps"] == 3
