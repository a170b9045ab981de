"""What `dcdist status` says of runs in each state, read from nothing but their folders."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dcdist.cli import main
from dcdist.commits import COMMIT_FILE, CheckpointName, Commit
from dcdist.errors import UsageError
from dcdist.run_directory import RunDirectory
from dcdist.status import StatusReader, read_status
from tests.runs.conftest import digits_folder, experiment  # noqa: F401
from tests.runs.processes import run, start_run, write_config
from tests.status.runs import T0, HandWrittenRun, stage_begin, start, step

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
    assert status.remaining_seconds is None  # no record says when the stage began
    assert status.lines() == [
        f"{tmp_path}: running",
        "deepcluster, epoch 5 of 10, step 50 of 100, train",
        "loss 2.5000, 128 samples/s",
        "no checkpoint yet",
        "last sign of progress 0 s ago",
        "attempt 1, 0 restarts, 0 steps repeated; 2 processes, slurm job 12_3",
    ]


def test_remaining_time_is_at_the_pace_of_this_attempt(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.write(run.begin(), start(1, 0), stage_begin(0, 100))
    attempt = run.begin()
    run.write(attempt, start(2, 20, T0 + 1000), stage_begin(20, 100, T0 + 1010), step(30, 2.0, T0 + 1060))
    run.beat(attempt, T0 + 1070, step=40, until_step=100)
    status = read_status(str(tmp_path), T0 + 1072)
    assert status.remaining_seconds == 60 * 60 / 20  # 20 steps took 60 s, clusterings included; 60 are left
    run.beat(attempt, T0 + 1070, step=20, until_step=100)
    assert read_status(str(tmp_path), T0 + 1072).remaining_seconds is None
    run.beat(attempt, T0 + 1070, step=40, until_step=100, stage="another")
    assert read_status(str(tmp_path), T0 + 1072).remaining_seconds is None


def test_remaining_time_of_the_second_stage(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.write(run.begin(), start(1, 0), stage_begin(0, 100, stage="first"), step(50, 2.0))
    reader = StatusReader(str(tmp_path))
    run.beat(1, T0 + 50, stage="first", step=50, until_step=100)
    assert reader.read(T0 + 51).remaining_seconds == 50.0
    run.beat(1, T0 + 110, stage="second", step=100, until_step=120)
    assert reader.read(T0 + 110).remaining_seconds is None
    run.write(1, stage_begin(100, 120, T0 + 110, stage="second"))
    run.beat(1, T0 + 116, stage="second", step=104, until_step=120)
    assert reader.read(T0 + 116).remaining_seconds == 16 * 6 / 4


def test_a_heartbeat_that_comes_after_the_records_hides_no_stage(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.begin()
    run.write(1, start(1, 100), stage_begin(100, 120, T0 + 110, stage="second"))
    run.beat(1, T0 + 110, stage="first", step=100)  # of the start, where records and heartbeats are uploaded apart
    reader = StatusReader(str(tmp_path))
    assert reader.read(T0 + 111).remaining_seconds is None
    run.beat(1, T0 + 116, stage="second", step=104, until_step=120)
    assert reader.read(T0 + 116).remaining_seconds == 16 * 6 / 4


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.begin()
    for step_, damaged in ((16, False), (32, True)):
        name = CheckpointName(step_, "train", 1)
        commit = Commit(name, {"stage": "main", "epoch": 3, "step": step_}, {}, 1, "0", "2027-01-15T08:00:10+00:00")
        content = commit.to_bytes()[: 20 if damaged else None]
        run.directory.storage.write_bytes(f"{name.folder}/{COMMIT_FILE}", content)
    status = read_status(str(tmp_path), T0 + 20)
    assert (status.last_checkpoint, status.step) == ("step-00000016-train.0001", 16)
    (tmp_path / CheckpointName(16, "train", 1).folder / COMMIT_FILE).write_bytes(b"")
    assert read_status(str(tmp_path), T0 + 20).lines()[1] == "no checkpoint yet"


def test_clocks_of_machines_may_differ(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.begin()
    ahead = StatusReader(str(tmp_path))  # the watcher's clock, by two minutes
    run.beat(1, T0 + 10, step=1)
    assert ahead.read(T0 + 130).state == "silent", "at first nobody can know"
    run.beat(1, T0 + 15, step=2)
    assert ahead.read(T0 + 135).state == "running", "what changes is alive"
    assert ahead.read(T0 + 160).state == "running"
    assert ahead.read(T0 + 170).state == "silent"
    behind = read_status(str(tmp_path), T0 - 3600)
    assert (behind.heartbeat_age_seconds, behind.attempt_age_seconds) == (0.0, 0.0)


def test_before_the_stage_has_begun_the_position_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.begin()
    name = CheckpointName(16, "train", 1)
    position = {"stage": "scan", "epoch": 3, "step": 16}
    commit = Commit(name, position, {}, 1, "0", "2027-01-15T08:00:10+00:00").to_bytes()
    run.directory.storage.write_bytes(f"{name.folder}/{COMMIT_FILE}", commit)
    run.beat(1, T0 + 20, stage="simclr", epoch=0, step=16)
    status = read_status(str(tmp_path), T0 + 20)
    assert (status.stage, status.epoch, status.step) == ("scan", 3, 16)
    assert status.last_checkpoint_age_seconds == 10
    run.beat(1, T0 + 20, stage="scan", epoch=4, step=17, num_epochs=8)
    status = read_status(str(tmp_path), T0 + 20)
    assert (status.stage, status.epoch, status.step) == ("scan", 4, 17)


def test_why_it_was_started_again(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    ends = [(75, "SIGTERM"), (75, None), (1, None), (3, None), (0, None), (2, None), (75, "SIGTERM"), (75, "SIGUSR2")]
    for code, signal_name in ends:
        run.end(run.begin(), code, "why", signal_name)
    run.begin()  # and killed
    run.begin()
    run.beat(10, T0, step=1)
    status = read_status(str(tmp_path), T0)
    assert status.restart_reasons == {
        "SIGTERM": 2,
        "peer_lost": 1,
        "failed": 1,
        "stopped": 1,
        "refused": 1,
        "SIGUSR2": 1,
        "killed": 1,
    }
    assert status.lines()[-1] == (
        "attempt 10, 9 restarts (SIGTERM 2, peer lost 1, failed 1, stopped 1, refused 1, SIGUSR2 1, killed 1), "
        "0 steps repeated; 2 processes, local"
    )


def test_of_an_attempt_that_has_ended_the_file_is_read_once(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.end(run.begin(), 75, "Preempted: SIGTERM", "SIGTERM")
    reader = StatusReader(str(tmp_path))
    assert reader.read(T0).state == "preempted"
    run.begin()
    (tmp_path / "attempts/0001.json").write_text("damaged since")
    run.beat(2, T0, step=1)
    status = reader.read(T0)
    assert (status.state, status.attempt, status.restart_reasons) == ("running", 2, {"SIGTERM": 1})


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


def test_needs_no_torch() -> None:
    program = "import sys, dcdist.status.watch; assert not {'torch', 's3fs', 'pyarrow', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_json_is_strict_where_a_heartbeat_has_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, {**HEARTBEAT, "loss": math.nan, "samples_per_second": math.inf})
    with pytest.raises(SystemExit) as end:
        main(["status", str(tmp_path), "--json"])
    assert end.value.code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (found["step"], found["loss"], found["samples_per_second"]) == (50, None, None)


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
