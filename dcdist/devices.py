"""A process's share of its machine: device, kernels, threads, memory, processes that load images."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch

from dcdist.config.schema import DataSection, LaunchSection
from dcdist.distributed.place import Place
from dcdist.errors import UsageError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
DEFAULT_WORKERS = {"cpu": 1, "cuda": 8}  # decoding processes per process


def take_device(launch: LaunchSection, place: Place) -> torch.device:
    """Chooses this process's device and sets torch up for it. Raises UsageError where it is not there."""
    device = choose_device(launch.device, place)
    set_threads(launch.threads_per_process, place)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)
        choose_kernels(launch.deterministic)
    return device


def choose_device(wanted: str, place: Place) -> torch.device:
    """This process's device. Raises UsageError where a GPU is wanted and there is none."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("launch.device=cuda, but torch sees no GPU: set launch.device=cpu or auto")
    return torch.device("cuda", place.local_rank % torch.cuda.device_count())


def choose_kernels(deterministic: bool) -> None:
    """Of a GPU: those that give the same bits in every run, or the fastest."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is used first
        torch.use_deterministic_algorithms(True, warn_only=True)  # a kernel that has no such form is named, and used


def devices_of_machine(own: torch.device, place: Place) -> tuple[torch.device, ...]:
    """This process's device, then the GPUs of the job's other processes on this machine, as far as it sees them."""
    if own.type == "cpu":
        return (own,)
    seen = range(min(place.local_world_size, torch.cuda.device_count()))
    return (own, *(torch.device("cuda", index) for index in seen if index != own.index))


def set_threads(wanted: int | str, place: Place) -> None:
    """Threads of torch: by default this machine's cores shared by its processes."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(wanted if isinstance(wanted, int) else max(1, cores // place.local_world_size))


def num_loader_processes(data: DataSection, device: torch.device) -> int:
    """Processes that decode images for this one."""
    return data.num_workers if isinstance(data.num_workers, int) else DEFAULT_WORKERS[device.type]


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks for the next step instead of giving them back to the kernel.

    By default every tensor above 32 MiB is mapped anew, its pages zeroed one fault at a time: a training step of
    AlexNet took 213,000 faults and a third more time. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
