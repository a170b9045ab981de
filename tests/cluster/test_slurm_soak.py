"""One run on SLURM through twenty disturbances in a row."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from dcdist.metrics.jsonl import read_metrics
from dcdist.storage import open_storage
from tests.cluster.runs import assert_undisturbed_result, attempts, cluster_experiment, reached
from tests.cluster.slurm import Slurm, wait_for
from tests.cluster.test_slurm import dcdist, processes_of, sbatch, submit_by_hand, submit_by_submitit
from tests.runs.conftest import digits_folder  # noqa: F401
from tests.runs.processes import final_state, write_config
from tests.runs.processes import run as run_here

NUM_DISTURBANCES = 20
NUM_STEPS = 1400
KINDS = ("preempt", "kill", "stop", "node")


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_twenty_disturbances_in_a_row(slurm: Slurm, digits_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Each kind five times, in random order, some steps after the run is going again."""
    undisturbed = write_config(
        tmp_path / "undisturbed.yaml", cluster_experiment(digits_folder, tmp_path / "undisturbed", NUM_STEPS)
    )
    assert run_here(undisturbed, num_processes=2) == [0, 0]
    config = write_config(tmp_path / "config.yaml", cluster_experiment(digits_folder, tmp_path / "run", NUM_STEPS))
    choice = random.Random(31)
    kinds = list(KINDS) * (NUM_DISTURBANCES // len(KINDS))
    choice.shuffle(kinds)
    run = config.parent / "run"
    job = submit_by_hand(slurm, config, time_limit="60")
    seconds_to_end = []
    for number, kind in enumerate(kinds):
        going = reached_by_newest(run) if number else 0
        target = min(going + choice.randint(1, 12), NUM_STEPS - 20)
        resume(slurm, job, run, target, at_least_attempts=number + 1)
        print(f"disturbance {number + 1}: {kind} at step {reached_by_newest(run)}", flush=True)
        asked = time.time()
        if kind == "preempt":
            preempt(slurm, config, job)
            seconds_to_end.append(ended_at(run) - asked)
        elif kind == "kill":
            victims = processes_of(config)
            choice.choice(victims).kill()
            wait_for(lambda job=job: slurm.state(job) != "RUNNING", 60, "the batch script requeues the job")
        elif kind == "stop":
            dcdist(slurm, "stop", str(run))
            slurm.wait(job, "FAILED")
            seconds_to_end.append(ended_at(run) - asked)
            job = choice.choice((submit_by_hand, submit_by_submitit))(slurm, config, time_limit="60")
        else:
            slurm.kill_node("n2", with_tasks=True)
            wait_for(lambda job=job: slurm.state(job) != "RUNNING", 60, f"SLURM takes notice of job {job}")
            slurm.start_node("n2")
            time.sleep(2)
    slurm.finish(job)
    assert_undisturbed_result(run, final_state(tmp_path / "undisturbed"), NUM_STEPS)
    all_attempts = attempts(run)
    assert len(all_attempts) > NUM_DISTURBANCES
    all_ends = [attempt.get("ended", {"exit_code": None, "signal": None}) for attempt in all_attempts]
    ends = Counter((end["exit_code"], end["signal"]) for end in all_ends)
    repeated = sum(attempt["repeated_steps"] for attempt in all_attempts)
    records = read_metrics(open_storage(run))
    to_first_step = [record["seconds_from_start"] for record in records if record.get("event") == "first_step"]
    print(f"from a request to the end (s, up to 1 too many): {sorted(round(each, 1) for each in seconds_to_end)}")
    print(f"from the start of a job to its first step (s): {sorted(round(each, 1) for each in to_first_step)}")
    print(f"{Counter(kinds)}: {len(all_attempts)} attempts, {repeated} steps repeated, ends {ends}")
    assert ends[(75, "SIGTERM")] >= kinds.count("preempt")
    assert ends[(3, None)] == kinds.count("stop")
    for end, after in zip(all_ends, all_attempts[1:], strict=False):
        if end["signal"] or end["exit_code"] == 3:
            assert after["repeated_steps"] == 0


def ended_at(run: Path) -> float:
    """When the newest attempt that has ended did so, unix seconds; its clock counts whole ones."""
    ends = [attempt["ended"]["when"] for attempt in attempts(run) if "ended" in attempt]
    return datetime.fromisoformat(ends[-1]).timestamp() + 1


def reached_by_newest(run: Path) -> int:
    return max((reached(run, number) for number in range(1, len(attempts(run)) + 1)), default=0)


def resume(slurm: Slurm, job: str, run: Path, step: int, at_least_attempts: int) -> None:
    """Returns when a new attempt has come past the step."""

    def is_there() -> bool:
        if slurm.state(job) == "PENDING":
            with contextlib.suppress(AssertionError):
                time.sleep(1)
                slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        count = len(attempts(run))
        return count >= at_least_attempts and reached(run, count) >= step

    wait_for(is_there, 120, f"step {step}", lambda: f"{slurm.job(job)} {reached_by_newest(run)}")


def preempt(slurm: Slurm, config: Path, job: str) -> None:
    script = config.parent / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    urgent = sbatch(slurm, config.parent, "--partition=high", "--nodes=2", "--exclusive", str(script))
    slurm.wait(urgent, "COMPLETED")
    wait_for(lambda: slurm.state(job) != "RUNNING" or int(slurm.job(job)["Restarts"]) > 0, 30, "the job makes room")
