"""Processes on this machine. Signals go on to them; what they end with becomes one exit code."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from dcdist.config.schema import LaunchSection
from dcdist.errors import ExitCode, UsageError
from dcdist.launch.base import JobSpec

FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
# A bug or damaged memory: starting again would only crash again.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
MEETING = ("MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # here, for nothing should be loaded between fork and exec


class LocalLauncher:
    """One process a device of this machine, joined over the loopback address.

    Args:
        survivor_seconds: after one process has failed, how long the others have to notice (at their next collective,
            by its closed connections), save and exit, before they are killed.
    """

    def __init__(self, survivor_seconds: float = 120.0) -> None:
        self._survivor_seconds = survivor_seconds

    def submit(self, job: JobSpec) -> LocalJob:
        if job.num_nodes == 1:
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        else:
            meeting = {name: os.environ[name] for name in MEETING}
        processes: list[subprocess.Popen[bytes]] = []
        prepare = functools.partial(die_with, os.getpid())
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # they wait for wait(), which passes them on
        for local_rank in range(job.num_processes):
            place = {
                "RANK": job.node_rank * job.num_processes + local_rank,
                "WORLD_SIZE": job.num_nodes * job.num_processes,
                "LOCAL_RANK": local_rank,
                "LOCAL_WORLD_SIZE": job.num_processes,
                **meeting,
                "OMP_NUM_THREADS": job.threads_per_process,
            }
            environment = os.environ | {name: str(value) for name, value in place.items()}
            # A session of its own: Ctrl-C reaches the launcher alone, which passes it on once.
            try:
                process = subprocess.Popen(job.command, env=environment, start_new_session=True, preexec_fn=prepare)
            except OSError:
                for started in processes:
                    started.kill()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
                raise
            processes.append(process)
        return LocalJob(processes, self._survivor_seconds)


@dataclass(frozen=True)
class LocalJob:
    """The processes of one run, in rank order."""

    processes: Sequence[subprocess.Popen[bytes]]
    survivor_seconds: float

    def wait(self) -> ExitCode:
        """Forwards signals until every process has ended; survivors of a lost one get `survivor_seconds` to save."""
        with self._forwarding():
            deadline = None
            while any(process.poll() is None for process in self.processes):
                if deadline is None and any(process.poll() not in (None, 0) for process in self.processes):
                    deadline = time.monotonic() + self.survivor_seconds
                if deadline is not None and time.monotonic() > deadline:
                    self._send(signal.SIGKILL)
                time.sleep(0.05)
        return combined_exit_code([process.returncode for process in self.processes])

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    @contextlib.contextmanager
    def _forwarding(self) -> Iterator[None]:
        def forward(number: int, _frame: FrameType | None) -> None:
            self._send(number)

        previous = {number: signal.signal(number, forward) for number in FORWARDED}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def combined_exit_code(return_codes: Sequence[int]) -> ExitCode:
    """What a run ended with, from what its processes ended with (negative: the signal that killed one).

    A process that named its own failure decides: 2, then 1, then 3. Else 75 where one was preempted, killed or lost
    its peer. A crash (segmentation fault and the like) is a failure, and so is a code that dcdist does not give.
    """
    meanings = [_meaning(code) for code in return_codes]
    order = (ExitCode.USAGE, ExitCode.FAILURE, ExitCode.STOPPED, ExitCode.RUN_AGAIN, ExitCode.DONE)
    return min(meanings, key=order.index)


def _meaning(return_code: int) -> ExitCode:
    if return_code < 0:
        return ExitCode.FAILURE if -return_code in CRASHES else ExitCode.RUN_AGAIN
    return ExitCode(return_code) if return_code in set(ExitCode) else ExitCode.FAILURE


def free_port(address: str = "127.0.0.1") -> int:
    """One that nobody listens on just now, at this address; "" stands for all of this machine's."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def die_with(launcher: int) -> None:
    """In a process, before anything else: takes signals, and gets SIGTERM when its launcher's thread ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    # A launcher that is killed takes nothing with it: its processes get SIGTERM, save and exit.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it was killed already
        os.kill(os.getpid(), signal.SIGTERM)


def local_job(launch: LaunchSection, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> JobSpec:
    """The processes of `dcdist ARGUMENTS` on this machine.

    As many as the config says, else one a GPU, else one. Where NODE_RANK and NUM_NODES say that this is one of several
    machines (a pod of a Kubernetes job), the config's number is that of all of them.

    Raises:
        UsageError: NODE_RANK, NUM_NODES, MASTER_ADDR and MASTER_PORT do not go together, or the machines cannot have
            equally many processes.
    """
    node_rank, num_nodes = _read_node(environment)
    if isinstance(launch.num_processes, int):
        num_processes, left = divmod(launch.num_processes, num_nodes)
        if left:
            raise UsageError(
                f"launch.num_processes={launch.num_processes} does not share out to NUM_NODES={num_nodes} machines: "
                f"give a multiple of {num_nodes}, or auto for one a GPU"
            )
    else:
        num_processes = 1 if launch.device == "cpu" else max(1, count_gpus())
    if isinstance(launch.threads_per_process, int):
        threads = launch.threads_per_process
    else:
        threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    return JobSpec((sys.executable, "-m", "dcdist", *arguments), num_processes, threads, node_rank, num_nodes)


def _read_node(environment: Mapping[str, str]) -> tuple[int, int]:
    names = ("NODE_RANK", "NUM_NODES", *MEETING)
    if "NUM_NODES" not in environment:
        return 0, 1
    given = ", ".join(f"{name}={environment.get(name)!r}" for name in names)
    try:
        node_rank, num_nodes = int(environment["NODE_RANK"]), int(environment["NUM_NODES"])
        is_place = 0 <= node_rank < num_nodes and (num_nodes == 1 or all(environment.get(name) for name in MEETING))
    except (KeyError, ValueError):
        is_place = False
    if not is_place:
        raise UsageError(
            f"the environment describes no machine of several: {given}; expected 0 <= NODE_RANK < NUM_NODES and where "
            "the machine of rank 0 is"
        )
    return node_rank, num_nodes


def count_gpus() -> int:
    """GPUs that this job owns, without loading a framework: CUDA_VISIBLE_DEVICES, else the driver's list."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
        return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return 0
