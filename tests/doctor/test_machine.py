"""Versions, devices, cores and the limits of control groups."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcdist.distributed.place import Place
from dcdist.doctor import machine
from dcdist.doctor.cgroup import Room, cpu_quota, memory_room
from dcdist.doctor.check import Check
from dcdist.doctor.machine import (
    check_cores,
    check_device,
    check_gpus,
    check_same_versions,
    check_versions,
    look_around,
    ranks_text,
)
from tests.doctor.helpers import ALONE, CPU, facts, write_files


def test_versions_are_named() -> None:
    found = look_around(ALONE, CPU).versions
    check = check_versions(found, 2.04)
    assert check.state == "ok"
    assert f"torch {torch.__version__}" in check.finding
    assert f"numpy {np.__version__}" in check.finding
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in check.finding
    assert check.finding.endswith("; imported in 2.0 s")
    slow = check_versions(found, 16)
    assert slow.state == "warn"
    assert "local disk" in slow.remedy


def test_other_versions_on_some_ranks() -> None:
    same = [facts(rank) for rank in range(3)]
    assert check_same_versions(same) == Check("same versions", "ok", "on all 3 processes")
    check = check_same_versions([*same, facts(3, versions={"torch": "2.11"}), facts(4, versions={})])
    assert check.state == "FAIL"
    assert check.finding == "torch differs: 2.14 on ranks 0-2, 2.11 on rank 3, none on rank 4"
    assert "one environment for all machines" in check.remedy


def test_gpus_of_two_kinds_are_a_warning() -> None:
    check = check_same_versions([facts(0, versions={"GPU": "H100"}), facts(1, versions={"GPU": "A100"})])
    assert (check.state, check.finding) == ("warn", "GPUs differ: H100 on rank 0, A100 on rank 1")
    assert "--constraint" in check.remedy


def test_ranks_are_shortened() -> None:
    assert ranks_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_wanted_and_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device, check = check_device("cuda", ALONE)
    assert device == CPU
    assert check.state == "FAIL"
    assert "torch sees no GPU: this machine or container has no NVIDIA driver" in check.finding
    assert "sbatch --gres=gpu:1" in check.remedy
    assert "--device cpu" in check.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' hides all of them" in check_device("cuda", ALONE)[1].finding
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is built without CUDA" in check_device("cuda", ALONE)[1].finding


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_is_fine_unless_the_machine_has_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not machine.has_nvidia_driver(tmp_path)
    (tmp_path / "0000:01:00.0").mkdir()
    assert machine.has_nvidia_driver(tmp_path)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: False)
    assert check_device("auto", ALONE)[1].state == "ok"
    assert re.fullmatch("CPU, bf16 (native|emulated, so fp32 is the default)", check_device("auto", ALONE)[1].finding)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: True)
    assert check_device("auto", ALONE)[1].state == "warn"
    assert check_device("cpu", ALONE)[1].state == "ok"


def test_more_processes_than_gpus() -> None:
    assert check_gpus([facts(0), facts(1)]) == Check("GPUs", "ok", "none is used")
    # By identity: two machines may both have a cuda:0, and SLURM shows each process its own as cuda:0.
    fine = [
        facts(0, gpu="GPU-1"),
        facts(1, gpu="GPU-2"),
        facts(2, gpu="GPU-1", host="b"),
        facts(3, gpu="GPU-1", boot="2"),
    ]
    assert check_gpus(fine) == Check("GPUs", "ok", "one a process")
    check = check_gpus([*fine, facts(4, gpu="GPU-2"), facts(5, gpu="GPU-2")])
    assert check.state == "FAIL"
    assert check.finding == "more processes than GPUs on a: ranks 1, 4-5 share one"
    assert check.remedy.startswith("start 2 a machine: srun --ntasks-per-node")
    check = check_gpus([*fine, facts(4), facts(5)])
    assert (check.state, check.finding) == ("FAIL", "ranks 4-5 have none, the others do")


def test_threads_that_fit_the_cores() -> None:
    check = check_cores([facts(0), facts(1), facts(2, host="b"), facts(3, host="b", threads=1)])
    assert check == Check("cores", "ok", "a: 4 for 2 x 2 threads, b: 4 for 2 x 1.5 threads")
    # Each process bound to cores of its own, as srun does it.
    bound = [facts(rank, cores=frozenset([2 * rank, 2 * rank + 1])) for rank in range(2)]
    assert check_cores(bound) == Check("cores", "ok", "a: 4 for 2 x 2 threads")


@pytest.mark.parametrize(
    ("changes", "finding", "remedy"),
    [
        ({"threads": 4}, "more threads than cores on a", "OMP_NUM_THREADS=2 and launch.threads_per_process=2"),
        ({"quota": 2.0}, "more threads than cores on a", "OMP_NUM_THREADS=1"),
        ({"cores": frozenset([0]), "threads": 1}, "fewer cores than processes on a", "--cpus-per-task"),
        ({"local_world_size": 1}, "2 processes run on a, the launcher says 1", "LOCAL_WORLD_SIZE must be"),
    ],
)
def test_too_many_threads(changes: dict[str, Any], finding: str, remedy: str) -> None:
    check = check_cores([facts(rank, **changes) for rank in range(2)])
    assert check.state == "warn"
    assert finding in check.finding
    assert remedy in check.remedy


def test_threads_and_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "7,2")
    assert look_around(ALONE, CPU).threads == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert look_around(ALONE, CPU).threads == cores
    assert look_around(Place(0, 2 * cores, 0, 2 * cores), CPU).threads == 1
    own = look_around(ALONE, CPU)
    assert (own.host, own.cores, own.gpu) == (socket.gethostname(), frozenset(os.sched_getaffinity(0)), None)


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    files = {
        "process": "0::/job/step\n",
        "mount/job/step/memory.max": "max\n",
        "mount/job/step/cpu.max": "max 100000\n",
        "mount/job/memory.max": "1000\n",
        "mount/job/memory.current": "900\n",
        "mount/job/memory.stat": "anon 700\ninactive_file 150\n",
        "mount/job/cpu.max": "150000 100000\n",
        "mount/memory.max": "5000\n",
    }
    write_files(tmp_path, files)
    assert memory_room(tmp_path / "process", tmp_path / "mount") == Room(1000, 250)
    assert cpu_quota(tmp_path / "process", tmp_path / "mount") == 1.5


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    files = {
        "process": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
        "mount/memory/job/memory.limit_in_bytes": "1000\n",
        "mount/memory/job/memory.usage_in_bytes": "900\n",
        "mount/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "mount/cpu/job/cpu.cfs_quota_us": "-1\n",
        "mount/cpu/job/cpu.cfs_period_us": "100000\n",
    }
    write_files(tmp_path, files)
    assert memory_room(tmp_path / "process", tmp_path / "mount") == Room(1000, 100)
    assert cpu_quota(tmp_path / "process", tmp_path / "mount") is None
    (tmp_path / "mount/cpu/job/cpu.cfs_quota_us").write_text("400000\n")
    assert cpu_quota(tmp_path / "process", tmp_path / "mount") == 4
    assert memory_room(tmp_path / "nothing", tmp_path) is None
