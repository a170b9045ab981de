"""The job that this process belongs to, as its launcher says in the environment. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil


def describe_launcher(environment: Mapping[str, str]) -> dict[str, Any]:
    """Who started this process, under which name the job is known there, and how often it was started again."""
    if "DCDIST_RAY_JOB" in environment:
        restarts = int(environment["DCDIST_RESTART_COUNT"])
        return {"name": "ray", "job": environment["DCDIST_RAY_JOB"], "restart_count": restarts}
    if "SLURM_JOB_ID" in environment:
        array = environment.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]
        restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        return {"name": "slurm", "job": job, "restart_count": restarts, "nodes": environment["SLURM_JOB_NODELIST"]}
    if "KUBERNETES_SERVICE_HOST" in environment:
        return {"name": "kubernetes", "job": environment.get("JOB_NAME", environment.get("HOSTNAME"))}
    return {"name": "local"}


def job_started_at(environment: Mapping[str, str] = os.environ) -> float:
    """When the job that this process belongs to began, unix seconds; where its launcher does not say, this process."""
    return float(environment.get("DCDIST_STARTED_AT") or psutil.Process().create_time())
