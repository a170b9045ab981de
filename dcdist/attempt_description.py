"""What an attempt's file says of its surroundings: launcher, versions, hardware, git state."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("dcdist", "torch", "torchvision", "faiss-cpu", "faiss-gpu", "numpy", "pyarrow")


def describe_attempt(num_processes: int, device: torch.device) -> dict[str, Any]:
    """JSON values for attempts/NNNN.json."""
    return {
        "num_processes": num_processes,
        "launcher": describe_launcher(os.environ),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(device),
        "git": _git_state(),
    }


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


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _hardware(device: torch.device) -> dict[str, Any]:
    described: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "processor": _processor()}
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def _git_state() -> dict[str, Any] | None:
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(  # of the package: what else lies in the checkout does not decide what a run does
            ["git", "status", "--porcelain", "."], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed.strip())}
