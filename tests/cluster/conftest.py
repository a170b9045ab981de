"""A real SLURM of two nodes for the session, and the experiment that is run on clusters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.availability import unavailable
from tests.cluster.runs import cluster_experiment
from tests.cluster.slurm import Slurm, missing_daemons
from tests.runs.conftest import digits_folder, undisturbed  # noqa: F401
from tests.runs.processes import final_state, run, write_config


@pytest.fixture
def slurm(_slurm: Slurm) -> Iterator[Slurm]:
    """Two nodes with four cores and four GPUs each, as far as SLURM knows; no job on it."""
    yield _slurm
    _slurm.clear()


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = missing_daemons()
    if missing or os.geteuid() != 0:
        unavailable(f"a SLURM of one's own needs root and {', '.join(missing) or 'its daemons, which are here'}")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:  # noqa: F811
    """The clusters' experiment on two processes of this machine that nothing disturbs: its folder."""
    folder = tmp_path_factory.mktemp("undisturbed-cluster")
    file = write_config(folder / "config.yaml", cluster_experiment(digits_folder, folder / "run"))
    assert run(file, num_processes=2) == [0, 0]
    return folder / "run"


@pytest.fixture(scope="session")
def undisturbed_on_two(undisturbed_run: Path) -> dict[str, Any]:
    """What it ends with."""
    return final_state(undisturbed_run)


@pytest.fixture
def config(tmp_path: Path, digits_folder: Path) -> Path:  # noqa: F811
    """The clusters' experiment as a file, its run in tmp_path/run."""
    return write_config(tmp_path / "config.yaml", cluster_experiment(digits_folder, tmp_path / "run"))
