"""Runs on SLURM that get nowhere: they end. And runs of srun alone, without dcdist's batch scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.runs import attempts
from tests.cluster.slurm import Slurm
from tests.cluster.test_slurm import (
    ROOT,
    TWO_NODES,
    Submit,
    by_hand,
    by_submitit,
    dcdist,
    in_soak,
    logs,
    submit_by_hand,
)


@pytest.mark.parametrize("submit", [by_submitit, in_soak(by_hand)])
def test_three_starts_that_all_processes_are_killed_in(slurm: Slurm, config: Path, submit: Submit) -> None:
    """As when there is too little memory: nobody is left to say so."""
    job, run = submit(slurm, config, DCDIST_FAULT="features:batch:1"), config.parent / "run"
    slurm.finish(job, state="FAILED")
    assert slurm.job(job)["ExitCode"] == "1:0"
    ends = [attempt["ended"] for attempt in attempts(run)]
    assert [(end["exit_code"], end["signal"]) for end in ends] == [(75, None), (75, None), (1, None)]
    assert "exit code 137, and none was left to say why" in ends[0]["reason"]
    assert "not started again: 3 attempts in a row ended without a new checkpoint" in logs(config)
    assert "ended" in dcdist(slurm, "status", str(run))


def test_three_starts_that_one_process_is_killed_in(slurm: Slurm, config: Path) -> None:
    """The other one asks each time to be run again."""
    job, run = submit_by_hand(slurm, config, DCDIST_FAULT="features:batch:1:1"), config.parent / "run"
    slurm.finish(job, state="FAILED")
    assert slurm.job(job)["ExitCode"] == "1:0"
    ends = [attempt["ended"] for attempt in attempts(run)]
    assert [end["exit_code"] for end in ends] == [75, 75, 1]
    assert ends[0]["reason"].startswith("PeerLost: ")
    assert "not started again: attempt 3 ended so: 3 attempts in a row ended without a new checkpoint" in logs(config)


def test_srun_alone_starts_a_run_of_several_processes(slurm: Slurm, config: Path) -> None:
    command = (".venv/bin/dcdist", "train", str(config), "train.num_epochs=1")
    slurm.run("srun", f"--chdir={ROOT}", *TWO_NODES, "--ntasks=2", "--time=10", *command)
    (attempt,) = attempts(config.parent / "run")
    assert (attempt["num_processes"], attempt["ended"]["exit_code"]) == (2, 0)
