"""Processes on this machine. Signals go on to them; what they end with becomes one exit code."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from dcdist.errors import ExitCode
from dcdist.launch.base import JobSpec

FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
# A bug or damaged memory: starting again would only crash again.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
# Survivors notice a lost peer by its closed connections, at their next collective.
SURVIVOR_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1


class LocalLauncher:
    """One process a device of this machine, joined over the loopback address."""

    def submit(self, job: JobSpec) -> LocalJob:
        port = _free_port()
        processes = []
        for rank in range(job.num_processes):
            place = {
                "RANK": rank,
                "WORLD_SIZE": job.num_processes,
                "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": job.num_processes,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": job.threads_per_process,
            }
            environment = os.environ | {name: str(value) for name, value in place.items()}
            # A session of its own: Ctrl-C reaches the launcher alone, which passes it on once.
            processes.append(
                subprocess.Popen(job.command, env=environment, start_new_session=True, preexec_fn=_end_with_the_launcher)
            )
        return LocalJob(processes)


@dataclass(frozen=True)
class LocalJob:
    """The processes of one run, in rank order."""

    processes: Sequence[subprocess.Popen[bytes]]

    def wait(self) -> ExitCode:
        """Forwards signals until every process has ended; survivors of a lost one get SURVIVOR_SECONDS to save."""
        with self._forwarding():
            deadline = None
            while any(process.poll() is None for process in self.processes):
                if deadline is None and any(process.poll() not in (None, 0) for process in self.processes):
                    deadline = time.monotonic() + SURVIVOR_SECONDS
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
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def combined_exit_code(return_codes: Sequence[int]) -> ExitCode:
    """What a run ended with, from what its processes ended with (negative: the signal that killed one).

    A process that named its own failure decides: 2, then 1, then 3. Else 75 where one was preempted, killed or lost
    its peer. A crash (segmentation fault and the like) is a failure.
    """
    codes = set(return_codes)
    if any(-code in CRASHES for code in codes if code < 0):
        return ExitCode.FAILURE
    for decisive in (ExitCode.USAGE, ExitCode.FAILURE, ExitCode.STOPPED):
        if decisive in codes:
            return decisive
    if codes <= {0}:
        return ExitCode.DONE
    if ExitCode.RUN_AGAIN in codes or any(code < 0 for code in codes):
        return ExitCode.RUN_AGAIN
    return ExitCode.FAILURE


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_the_launcher() -> None:
    # A launcher that is killed takes nothing with it: its processes get SIGTERM, save and exit.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def count_gpus() -> int:
    """GPUs that this job owns, without loading a framework: CUDA_VISIBLE_DEVICES, else the driver's list."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
        return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return 0
