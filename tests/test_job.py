"""What a process says of the job that it belongs to, and since when that runs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dcdist.job import describe_launcher, job_started_at

SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]"}
RAY = {"DCDIST_RAY_JOB": "01000000", "DCDIST_RESTART_COUNT": "3"}


@pytest.mark.parametrize(
    ("environment", "described"),
    [
        ({}, {"name": "local"}),
        (SLURM, {"name": "slurm", "job": "17", "restart_count": 0, "nodes": "n[1-2]"}),
        (SLURM | {"SLURM_RESTART_COUNT": "2"}, {"name": "slurm", "job": "17", "restart_count": 2, "nodes": "n[1-2]"}),
        (
            SLURM | {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "4"},
            {"name": "slurm", "job": "15_4", "restart_count": 0, "nodes": "n[1-2]"},
        ),
        (SLURM | RAY, {"name": "ray", "job": "01000000", "restart_count": 3}),
        (
            {"KUBERNETES_SERVICE_HOST": "h", "HOSTNAME": "digits-1-x7", "JOB_NAME": "digits"},
            {"name": "kubernetes", "job": "digits"},
        ),
    ],
)
def test_launchers(environment: dict[str, str], described: dict[str, Any]) -> None:
    assert describe_launcher(environment) == described


def test_the_start_is_the_jobs_where_it_says_so() -> None:
    assert job_started_at({"DCDIST_STARTED_AT": "1700000000.5"}) == 1700000000.5
    assert 0 < time.time() - job_started_at({}) < 24 * 3600
