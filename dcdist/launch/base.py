"""What launchers share: the processes of a run on one machine, and paths of a config that hold in other folders too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dcdist.config.schema import ExperimentConfig
from dcdist.config.sections import Section
from dcdist.errors import UsageError

# The keys of the config that name files and folders of this machine or of all, by section. Not model.initial_weights:
# it is part of what a run is, as it is written; made absolute it would be another run's.
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


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment for processes that may start in another folder, and whoever reads the run from another one.

    URLs stay as they are.
    """
    sections: dict[str, Section] = {}
    for name, path in relative_paths(config).items():
        section, _, key = name.partition(".")
        before = sections.get(section, getattr(config, section))
        sections[section] = before.model_copy(update={key: str(Path(path).absolute())})
    return config.model_copy(update=sections)


def relative_paths(config: ExperimentConfig) -> dict[str, str]:
    """Those of the config, by their keys, as in data.root; model.initial_weights is not among them."""
    given = {f"{name}.{key}": getattr(getattr(config, name), key) for name, keys in _PATHS.items() for key in keys}
    return {name: path for name, path in given.items() if path is not None and _is_relative(path)}


def check_initial_weights(config: ExperimentConfig) -> None:
    """For processes in folders of their own. Raises UsageError where they would not find model.initial_weights."""
    weights = config.model.initial_weights
    if weights is not None and _is_relative(weights):
        raise UsageError(
            f"model.initial_weights={weights} is relative, and the processes start in folders of their own: give the "
            "absolute path of a file that all machines see, or a URL"
        )


def _is_relative(path: str) -> bool:
    return "://" not in path and not Path(path).is_absolute()
