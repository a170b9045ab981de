"""Versions, devices and cores: what each process sees, and what that means for those of one machine."""

from __future__ import annotations

import os
import platform
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dcdist.devices import choose_device
from dcdist.distributed.place import Place
from dcdist.doctor.cgroup import cpu_quota
from dcdist.doctor.check import Check, Problem, judge, one_line
from dcdist.models.numerics import has_bfloat16

_PACKAGES = ("dcdist", "torch", "torchvision", "numpy", "faiss-cpu", "faiss-gpu")
_NO_GPU_REMEDY = (
    "ask for one (sbatch --gres=gpu:1, docker run --gpus all, nvidia.com/gpu in the pod), see whether nvidia-smi finds "
    "it, or take --device cpu"
)
SLOW_IMPORT_SECONDS = 15.0


@dataclass(frozen=True)
class Facts:
    """What one process knows of itself; rank 0 compares them."""

    rank: int
    host: str
    boot: str  # of the machine: hosts of one name may be two machines
    local_world_size: int
    versions: dict[str, str]
    cores: frozenset[int]
    quota: float | None
    threads: int
    gpu: str | None  # which one it computes on

    @property
    def machine(self) -> tuple[str, str]:
        """The same for processes that share cores and GPUs."""
        return self.host, self.boot


def look_around(place: Place, device: torch.device) -> Facts:
    """The facts of this process, which computes on the device."""
    cores = frozenset(os.sched_getaffinity(0))
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return Facts(
        rank=place.rank,
        host=socket.gethostname(),
        boot=_boot(),
        local_world_size=place.local_world_size,
        versions=versions(device),
        cores=cores,
        quota=cpu_quota(),
        # What launch.threads_per_process=auto takes, where the launcher says nothing.
        threads=int(given) if given.isdigit() else max(1, len(cores) // place.local_world_size),
        gpu=str(getattr(torch.cuda.get_device_properties(device), "uuid", device)) if device.type == "cuda" else None,
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def versions(device: torch.device) -> dict[str, str]:
    """Of everything that must be the same on all machines, and the GPU's name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = str(torch.__version__)  # with its build, which the package's version may leave out
    found["CUDA"] = str(torch.version.cuda or "none")
    if torch.distributed.is_nccl_available():
        nccl: Any = torch.cuda.nccl
        found["NCCL"] = ".".join(map(str, nccl.version()))
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
    return found


def check_versions(found: dict[str, str], import_seconds: float) -> Check:
    """Names them, and the time that their import took; whether they fit is for others to say."""
    problems = []
    if import_seconds > SLOW_IMPORT_SECONDS:
        remedy = "put the environment on a local disk, or take a container image"
        problems.append(Problem("warn", "importing takes long: small files on slow storage?", remedy))
    names = ", ".join(f"{name} {version}" for name, version in found.items())
    return judge("versions", f"{names}; imported in {import_seconds:.1f} s", problems)


def check_same_versions(processes: Sequence[Facts]) -> Check:
    """Whether all processes run the same software, on GPUs of one kind."""
    problems = []
    for name in dict.fromkeys(name for process in processes for name in process.versions):
        ranks: dict[str, list[int]] = {}
        for process in processes:
            ranks.setdefault(process.versions.get(name, "none"), []).append(process.rank)
        if len(ranks) > 1:
            which = ", ".join(
                f"{version} on rank{'s' if len(found) > 1 else ''} {ranks_text(found)}"
                for version, found in ranks.items()
            )
            if name == "GPU":
                remedy = "ask for machines of one kind (sbatch --constraint): the slowest GPU sets the pace"
                problems.append(Problem("warn", f"GPUs differ: {which}", remedy))
            else:
                remedy = "one environment for all machines: the same container image, or one on shared storage"
                problems.append(Problem("FAIL", f"{name} differs: {which}", remedy))
    return judge("same versions", f"on all {len(processes)} processes" if not problems else "", problems)


def ranks_text(ranks: Sequence[int]) -> str:
    """A short form of ascending ranks: "0-2, 5"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def check_device(wanted: str, place: Place) -> tuple[torch.device, Check]:
    """This process's device, whether it computes, and whether the GPU that is wanted (or there) is seen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch says by a warning why a driver is of no use
        is_seen = torch.cuda.is_available()
    if wanted == "cpu" or not is_seen:
        device = torch.device("cpu")
        bf16 = f"bf16 {'native' if has_bfloat16(device) else 'emulated, so fp32 is the default'}"
        problems = []
        if wanted != "cpu" and (wanted == "cuda" or has_nvidia_driver()):
            why = " ".join(str(warning.message).split("(Triggered")[0].strip() for warning in caught)
            finding = f"torch sees no GPU: {why or why_no_gpu()}"
            problems.append(Problem("FAIL" if wanted == "cuda" else "warn", finding, _NO_GPU_REMEDY))
        return device, judge("device", f"CPU, {bf16}", problems)
    device = choose_device(wanted, place)
    name = f"{device} ({torch.cuda.get_device_name(device)})"
    try:
        values = torch.eye(64, device=device)
        is_right = float((values @ values).sum()) == 64.0
    except RuntimeError as error:
        remedy = "is the GPU in use or broken (nvidia-smi)? Is this torch built for it (torch.cuda.get_arch_list())?"
        return device, Check("device", "FAIL", f"{name} does not compute: {one_line(error)}", remedy)
    if not is_right:
        return device, Check("device", "FAIL", f"{name} computes wrongly", "leave this GPU out, and have it repaired")
    free, total = torch.cuda.mem_get_info(device)
    bf16 = "bf16" if has_bfloat16(device) else "no bf16, so fp32 is the default"
    seen = f"{torch.cuda.device_count()} seen, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {bf16}"
    return device, Check("device", "ok", f"{name}, {seen}")


def has_nvidia_driver(folder: Path = Path("/proc/driver/nvidia/gpus")) -> bool:
    """Whether the kernel has GPUs of NVIDIA, seen by torch or not."""
    return folder.is_dir() and any(folder.iterdir())


def why_no_gpu() -> str:
    """The most likely reason."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides all of them"
    if not has_nvidia_driver():
        return "this machine or container has no NVIDIA driver"
    return "the driver is there, its GPUs are not given to this process"


def check_gpus(processes: Sequence[Facts]) -> Check:
    """Whether each process has a GPU of its own; NCCL refuses two on one."""
    on_gpu: dict[tuple[tuple[str, str], str], list[int]] = {}
    without = [process.rank for process in processes if process.gpu is None]
    for process in processes:
        if process.gpu is not None:
            on_gpu.setdefault((process.machine, process.gpu), []).append(process.rank)
    if not on_gpu:
        return Check("GPUs", "ok", "none is used")
    problems = []
    if without:
        finding = f"ranks {ranks_text(without)} have none, the others do"
        problems.append(Problem("FAIL", finding, "give every process a GPU, or take --device cpu for all"))
    for (machine, _), ranks in on_gpu.items():
        if len(ranks) > 1:
            num_gpus = sum(1 for other, _ in on_gpu if other == machine)
            finding = f"more processes than GPUs on {machine[0]}: ranks {ranks_text(ranks)} share one"
            remedy = (
                f"start {num_gpus} a machine: srun --ntasks-per-node, torchrun --nproc-per-node, launch.num_processes"
            )
            problems.append(Problem("FAIL", finding, remedy))
    return judge("GPUs", "one a process" if not problems else "", problems)


def check_cores(processes: Sequence[Facts]) -> Check:
    """Whether the cores of each machine are enough for the threads of the processes on it."""
    problems, lines = [], []
    for machine in dict.fromkeys(process.machine for process in processes):
        here = [process for process in processes if process.machine == machine]
        cores: float = len(frozenset().union(*(process.cores for process in here)))
        quotas = [process.quota for process in here if process.quota is not None]
        if quotas and min(quotas) < cores:
            cores = min(quotas)
        threads = sum(process.threads for process in here)
        share = max(1, int(cores) // len(here))
        lines.append(f"{machine[0]}: {cores:g} for {len(here)} x {threads / len(here):g} threads")
        if any(process.local_world_size != len(here) for process in here):
            finding = f"{len(here)} processes run on {machine[0]}, the launcher says {here[0].local_world_size}"
            problems.append(Problem("warn", finding, "LOCAL_WORLD_SIZE must be the number of processes a machine"))
        if cores < len(here):
            remedy = "start fewer processes, or ask for more cores (--cpus-per-task)"
            problems.append(Problem("warn", f"fewer cores than processes on {machine[0]}", remedy))
        elif threads > cores:
            remedy = f"OMP_NUM_THREADS={share} and launch.threads_per_process={share}, or more cores (--cpus-per-task)"
            problems.append(Problem("warn", f"more threads than cores on {machine[0]}", remedy))
    shown = lines[:4] + ([f"and {len(lines) - 4} more machines"] if len(lines) > 4 else [])
    return judge("cores", ", ".join(shown), problems)
