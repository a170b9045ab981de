"""What the process was given: its launcher, its signals, its limits. No torch."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from dcdist.distributed.place import Place, describes_process_group, read_place
from dcdist.doctor.cgroup import memory_room
from dcdist.doctor.check import Check, Problem, judge
from dcdist.engine.preemption import PREEMPTION_SIGNALS, SignalFlag
from dcdist.errors import UsageError

_DELIVERED = (signal.SIGTERM, signal.SIGUSR2)
_DELIVERY_SECONDS = 2.0
_MIB = 1 << 20
MIN_OPEN_FILES = 1024
SHARED_MEMORY = 64 * _MIB  # what Docker gives by default, and too little
MIN_MEMORY = 1 << 30


def check_launcher(environment: Mapping[str, str] = os.environ) -> tuple[Place, Check]:
    """Who started this process, as which of how many; one alone where what the launcher says makes no sense."""
    name = launcher_name(environment)
    try:
        place = read_place(environment)
    except UsageError as error:
        remedy = (
            "start it by srun, torchrun or dcdist's launcher, or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE"
        )
        return Place(0, 1, 0, 1), Check("launcher", "FAIL", f"{name}: {error}", remedy)
    problems = []
    num_tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_JOB_ID" in environment and not describes_process_group(environment) and num_tasks != "1":
        problems.append(
            Problem(
                "warn",
                f"this process is alone in a SLURM job of {num_tasks} tasks: a batch script is no step",
                "start it by srun: srun dcdist doctor",
            )
        )
    handled = environment.get("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGUSR2")
    if "SLURM_JOB_ID" in environment and "SIGUSR2" not in handled.split(","):
        problems.append(
            Problem(
                "warn",
                f"torchrun passes on {handled} alone: a SIGUSR2 of SLURM would end it and every process at once",
                "torchrun --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
            )
        )
    where = f"rank {place.rank} of {place.world_size}, local rank {place.local_rank} of {place.local_world_size}"
    return place, judge("launcher", f"{name}: {where}", problems)


def launcher_name(environment: Mapping[str, str]) -> str:
    """The launcher whose variables are there."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun"
    node = f", machine {environment['NODE_RANK']} by NODE_RANK" if "NODE_RANK" in environment else ""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return "Ray" if "RAY_JOB_ID" in environment else f"RANK and WORLD_SIZE in the environment{node}"
    if describes_process_group(environment):
        return f"SLURM step {environment.get('SLURM_JOB_ID', '?')}.{environment['SLURM_STEP_ID']}"
    if "SLURM_JOB_ID" in environment:
        return f"none, within SLURM job {environment['SLURM_JOB_ID']}"
    return f"none{node}"


def check_signals() -> Check:
    """Whether the signals that announce a preemption reach this process and set the flag of a run.

    What was there before (handlers, the mask) is there afterwards. Only the main thread of a process may ask.
    """
    if threading.current_thread() is not threading.main_thread():
        return Check("signals", "warn", "handlers can be installed from the main thread alone, this is another", "")
    problems = []
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(PREEMPTION_SIGNALS)
    if blocked:
        remedy = "whatever starts dcdist blocks them; start it by dcdist's local launcher, or unblock them before"
        problems.append(Problem("FAIL", f"{_names(blocked)} blocked since the start: never delivered", remedy))
    ignored = {number for number in _DELIVERED if signal.getsignal(number) is signal.SIG_IGN}
    if ignored:
        remedy = "take `trap '' ...` out of the script that starts dcdist (`trap - TERM USR2`)"
        finding = f"{_names(ignored)} ignored since the start: lost until a run has installed its handlers"
        problems.append(Problem("warn", finding, remedy))
    tried = [number for number in _DELIVERED if number not in blocked and signal.getsignal(number) is not None]
    lost = {number for number in tried if not _is_delivered(number)}
    if lost:
        remedy = "another library took them over: none may handle the signals of a preemption"
        problems.append(Problem("FAIL", f"{_names(lost)} sent to this process did not set the flag", remedy))
    arrived = [number for number in tried if number not in lost]
    return judge("signals", f"{_names(arrived)} set the flag of a run" if arrived else "", problems)


def _names(numbers: Iterable[int]) -> str:
    return " and ".join(signal.Signals(number).name for number in sorted(numbers))


def _is_delivered(number: signal.Signals) -> bool:
    previous = {each: signal.getsignal(each) for each in PREEMPTION_SIGNALS}
    flag = SignalFlag()
    try:
        flag.install()
        os.kill(os.getpid(), number)
        ends = time.monotonic() + _DELIVERY_SECONDS
        while flag.number is None and time.monotonic() < ends:
            time.sleep(0.001)
    finally:
        for each, handler in previous.items():
            if handler is not None:  # one that is not Python's cannot be put back
                signal.signal(each, handler)
    return flag.number == number


def check_open_files() -> Check:
    """The soft limit of open files: loader processes, connections and shards each take some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    problems = []
    if not unlimited and soft < MIN_OPEN_FILES:
        remedy = f"ulimit -n {MIN_OPEN_FILES if hard == resource.RLIM_INFINITY else max(hard, soft)} before the start"
        problems.append(Problem("warn", f"fewer than {MIN_OPEN_FILES} are allowed", remedy))
    return judge("open files", "no limit" if unlimited else f"up to {soft}", problems)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """The size of /dev/shm, through which the loader's processes hand over their batches."""
    remedy = (
        "make it larger: docker run --shm-size=8g; in Kubernetes an emptyDir with medium Memory mounted at /dev/shm; "
        "until then data.num_workers=0"
    )
    try:
        usage = shutil.disk_usage(folder)
    except FileNotFoundError:
        return Check("shared memory", "warn", f"there is no {folder}", remedy)
    problems = []
    if usage.total <= SHARED_MEMORY:
        problems.append(Problem("warn", "too little for the batches of the loader's processes", remedy))
    elif usage.free <= SHARED_MEMORY:
        problems.append(Problem("warn", "nearly full", f"remove what dead processes left in {folder}"))
    return judge("shared memory", f"{folder}: {_size(usage.free)} free of {_size(usage.total)}", problems)


def check_memory() -> Check:
    """Memory that is left on the machine, and in the control groups that this process is in."""
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    room = memory_room()
    fine = f"{_size(free)} free of {_size(total)} on the machine"
    if room is not None:
        fine += f", {_size(room.free)} of {_size(room.limit)} that this job may take"
        free = min(free, room.free)
    problems = []
    if free < MIN_MEMORY:
        problems.append(Problem("warn", "nearly none is left", "ask for more: sbatch --mem, or the pod's memory limit"))
    return judge("memory", fine, problems)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:.0f} MiB" if num_bytes < 1 << 30 else f"{num_bytes / (1 << 30):.1f} GiB"
