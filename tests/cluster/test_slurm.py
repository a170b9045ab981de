"""Runs on a real SLURM of two nodes, by the scripts in slurm/ and by `dcdist submit slurm`, disturbed and not."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from dcdist.build.recorder import reachable_name
from tests.cluster.prometheus import watching
from tests.cluster.runs import assert_undisturbed_result, attempts, wait_for_step
from tests.cluster.slurm import Slurm, wait_for
from tests.runs.processes import assert_same_state, final_state

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "slurm/deepcluster_alexnet.sh"
TWO_NODES = ("--nodes=2", "--cpus-per-task=1", "--partition=low")
Submit = Callable[..., str]


def dcdist(slurm: Slurm, *arguments: str, code: int = 0, **environment: str) -> str:
    """Output of a command, both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "dcdist", *arguments],
        cwd=ROOT,
        env=slurm.environment | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout + done.stderr


def sbatch(slurm: Slurm, folder: Path, *arguments: str, **environment: str) -> str:
    where = (f"--chdir={ROOT}", f"--output={folder}/%j.log")
    return slurm.run("sbatch", "--parsable", *where, *arguments, **environment).strip()


def submit_by_hand(
    slurm: Slurm, config: Path, time_limit: str = "10", signal_seconds: int = 60, **environment: str
) -> str:
    options = ("--gpus-per-node=0", "--ntasks-per-node=1", f"--time={time_limit}", f"--signal=USR2@{signal_seconds}")
    return sbatch(slurm, config.parent, *TWO_NODES, *options, SCRIPT, str(config), **environment)


def submit_by_submitit(
    slurm: Slurm, config: Path, time_limit: str = "10", signal_seconds: int = 60, **environment: str
) -> str:
    options = (f"--time={time_limit}", f"--signal-seconds={signal_seconds}")
    return dcdist(slurm, "submit", "slurm", str(config), *TWO_NODES, *options, **environment).strip()


def logs(config: Path) -> str:
    folders = (config.parent, config.parent / "run" / "slurm")
    return "".join(file.read_text() for folder in folders for file in sorted(folder.glob("*log*")))


by_hand = pytest.param(submit_by_hand, id="by_hand")
by_submitit = pytest.param(submit_by_submitit, id="submitit")


def in_soak(parameter: Any) -> Any:
    return pytest.param(*parameter.values, id=parameter.id, marks=pytest.mark.soak)


def processes_of(config: Path) -> list[psutil.Process]:
    """Those of the run that train, on both nodes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            is_python = bool(command) and "python" in Path(command[0]).name
            if is_python and "train" in command and str(config.parent) in " ".join(command):
                found.append(process)
    return found


def stopped_processes(config: Path) -> list[psutil.Process]:
    """Those of the run that SIGSTOP has stopped."""
    found = []
    for process in processes_of(config):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(process)
    return found


def let_go_on(config: Path) -> None:
    for process in stopped_processes(config):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def has_got(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether the signal waits for a stopped process, or has woken it."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return True
    pending = int(re.search(r"ShdPnd:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    return process.status() != psutil.STATUS_STOPPED or bool(pending >> (number - 1) & 1)


def has_ended(run: Path) -> bool:
    return any("ended" in attempt for attempt in attempts(run))


@pytest.mark.parametrize("submit", [by_hand, in_soak(by_submitit)])
def test_preempted_by_a_job_of_higher_priority(
    slurm: Slurm, config: Path, undisturbed_on_two: dict[str, Any], submit: Submit
) -> None:
    job, run = submit(slurm, config), config.parent / "run"
    wait_for_step(run, 20)
    script = config.parent / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    urgent = sbatch(slurm, config.parent, "--partition=high", "--nodes=2", "--exclusive", str(script))
    slurm.wait(urgent, "COMPLETED")
    slurm.finish(job)
    first, second = attempts(run)
    assert (first["ended"]["exit_code"], first["ended"]["signal"]) == (75, "SIGTERM")
    assert (second["ended"]["exit_code"], second["repeated_steps"]) == (0, 0)
    assert [attempt["launcher"]["restart_count"] for attempt in (first, second)] == [0, 1]
    assert {attempt["launcher"]["job"] for attempt in (first, second)} == {job}
    assert_undisturbed_result(run, undisturbed_on_two)
    assert "the cluster of every image" in logs(config)


@pytest.mark.parametrize("submit", [by_submitit, in_soak(by_hand)])
def test_cut_by_its_time_limit(slurm: Slurm, config: Path, undisturbed_on_two: dict[str, Any], submit: Submit) -> None:
    # SLURM looks at time limits twice a minute: the processes wait for that at step 60, unless it is at once. On a slow
    # machine the second attempt may meet its limit too.
    job = submit(slurm, config, time_limit="1", signal_seconds=50, DCDIST_FAULT="train:step:60:*:SIGSTOP")
    run = config.parent / "run"
    wait_for(lambda: len(stopped_processes(config)) == 2 or has_ended(run), 60, "both processes wait")
    waiting = stopped_processes(config)
    wait_for(lambda: all(has_got(process, signal.SIGUSR2) for process in waiting), 60, "SLURM tells both")
    slurm.finish(job, meanwhile=lambda: let_go_on(config))
    *limited, last = attempts(run)
    assert len(limited) >= 1
    assert {(attempt["ended"]["exit_code"], attempt["ended"]["signal"]) for attempt in limited} == {(75, "SIGUSR2")}
    assert [attempt["repeated_steps"] for attempt in (*limited, last)] == [0] * (len(limited) + 1)
    assert last["ended"]["exit_code"] == 0
    assert_undisturbed_result(run, undisturbed_on_two)


@pytest.mark.parametrize("submit", [by_hand, in_soak(by_submitit)])
def test_stopped_on_request_and_submitted_again(
    slurm: Slurm, config: Path, undisturbed_on_two: dict[str, Any], submit: Submit
) -> None:
    job, run = submit(slurm, config), config.parent / "run"
    wait_for_step(run, 20)
    assert "attempt 1" in dcdist(slurm, "stop", str(run))
    slurm.wait(job, "FAILED")
    assert slurm.job(job)["ExitCode"] == "3:0"
    (first,) = attempts(run)
    assert first["ended"]["exit_code"] == 3
    slurm.finish(submit(slurm, config))
    assert attempts(run)[1]["repeated_steps"] == 0
    assert_undisturbed_result(run, undisturbed_on_two)


@pytest.mark.parametrize("submit", [by_submitit, in_soak(by_hand)])
def test_a_node_dies(slurm: Slurm, config: Path, undisturbed_on_two: dict[str, Any], submit: Submit) -> None:
    job, run = submit(slurm, config), config.parent / "run"
    wait_for_step(run, 23)
    slurm.kill_node("n2", with_tasks=True)
    wait_for(lambda: slurm.state(job) != "RUNNING", 60, f"SLURM takes notice of job {job}")
    slurm.start_node("n2")
    time.sleep(2)  # a node that has just come back still ends the tasks of before
    slurm.finish(job)
    first, *_, second = attempts(run)
    assert first["ended"]["exit_code"] == 75
    assert first["ended"]["signal"] is None
    assert 0 <= second["repeated_steps"] <= 5
    assert_undisturbed_result(run, undisturbed_on_two)


def test_a_daemon_dies_and_its_processes_live_on(
    slurm: Slurm, config: Path, undisturbed_on_two: dict[str, Any]
) -> None:
    job, run = submit_by_hand(slurm, config), config.parent / "run"
    wait_for_step(run, 20)
    slurm.kill_node("n2", with_tasks=False)
    time.sleep(1)
    slurm.start_node("n2")
    slurm.finish(job)
    assert_same_state(final_state(run), undisturbed_on_two)


def test_cancelled_it_does_not_come_back(slurm: Slurm, config: Path) -> None:
    job, run = submit_by_hand(slurm, config), config.parent / "run"
    wait_for_step(run, 5)
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED")
    wait_for(lambda: "ended" in attempts(run)[0], 20, "the run saves")
    time.sleep(3)
    assert slurm.state(job) == "CANCELLED"
    assert attempts(run)[0]["ended"]["signal"] == "SIGTERM"


def test_prometheus_finds_a_job_of_two_nodes(slurm: Slurm, config: Path) -> None:
    run, discovery = config.parent / "run", config.parent / "discovery"
    metrics = ("metrics.prometheus_port=0", f"metrics.prometheus_discovery={discovery}", "train.num_epochs=100000")
    with watching(config.parent / "prometheus", discovery) as prometheus:
        options = ("--gpus-per-node=0", "--ntasks-per-node=1", "--time=10")
        job = sbatch(slurm, config.parent, *TWO_NODES, *options, SCRIPT, str(config), *metrics)
        own = f'run="{run}", instance="{run}", job="dcdist"'
        (info,) = prometheus.wait_for(f"dcdist_job_info{{{own}}} and on (run) dcdist_progress_steps > 20")
        assert (info["metric"]["launcher"], info["metric"]["job_name"]) == ("slurm", job)
        for metric in ("dcdist_processes", "dcdist_memory_bytes"):
            nodes = prometheus.query(f"{metric}{{{own}}} > 0")
            assert {series["metric"]["node"] for series in nodes} == {"n1", "n2"}, metric
        (file,) = discovery.iterdir()
        ((host, port),) = (target.split(":") for target in json.loads(file.read_text())[0]["targets"])
        assert host == reachable_name("0.0.0.0"), "as other machines reach it"
        listening = {made.laddr for made in psutil.net_connections("tcp4") if made.status == psutil.CONN_LISTEN}
        assert ("0.0.0.0", int(port)) in listening
        dcdist(slurm, "stop", str(run))
        slurm.wait(job, "FAILED")  # exit code 3
        assert list(discovery.iterdir()) == []
        (finished,) = prometheus.query(f"last_over_time(dcdist_finished{{{own}}}[5m])")
        assert finished["value"][1] == "1"
