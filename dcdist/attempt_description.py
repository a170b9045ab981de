"""What an attempt's file says of its surroundings: launcher, versions, hardware, git state."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dcdist.job import describe_launcher

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
