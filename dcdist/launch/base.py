"""What every launcher is: it places one dcdist process a device and describes the process group in the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dcdist.config.schema import ExperimentConfig
from dcdist.errors import ExitCode

# The keys of the config that name files and folders of this machine or of all, by section. Not model.initial_weights:
# what a run is must not depend on where it was started from.
_PATHS = {
    "run": ("dir",),
    "data": ("root", "cache_directory"),
    "metrics": (
        "prometheus_discovery",
        "prometheus_textfile",
        "prometheus_certificate",
        "prometheus_private_key",
        "prometheus_credentials",
    ),
}


@dataclass(frozen=True)
class JobSpec:
    """A run to start. Every process gets the same command; its place is in the environment (torchrun's variables).

    Where several machines share a run, each starts its own processes, the same number on all: `node_rank` is the
    place of this one among `num_nodes`. They meet where MASTER_ADDR and MASTER_PORT say.
    """

    command: tuple[str, ...]
    num_processes: int
    threads_per_process: int
    node_rank: int = 0
    num_nodes: int = 1


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


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment for processes that may start in another folder; URLs stay as they are."""

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(path).absolute())

    sections = {}
    for name, keys in _PATHS.items():
        section = getattr(config, name)
        paths = {key: absolute(path) for key in keys if (path := getattr(section, key)) is not None}
        sections[name] = section.model_copy(update=paths)
    return config.model_copy(update=sections)
