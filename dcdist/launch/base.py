"""What every launcher is: it places one dcdist process a device and describes the process group in the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dcdist.errors import ExitCode


@dataclass(frozen=True)
class JobSpec:
    """A run to start. Every process gets the same command; its place is in the environment (torchrun's variables)."""

    command: tuple[str, ...]
    num_processes: int
    threads_per_process: int


class JobHandle(Protocol):
    """A run that was started."""

    def wait(self) -> ExitCode:
        """Returns when every process has ended, with what the run as a whole ended with."""
        ...


class Launcher(Protocol):
    """Starts runs somewhere."""

    def submit(self, job: JobSpec) -> JobHandle:
        """Starts a run."""
        ...
