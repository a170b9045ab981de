"""Mounted file systems, and what two processes find together, asked once for all tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcdist.doctor.check import Check
from tests.availability import unavailable
from tests.distributed.processes import run_processes
from tests.doctor.two_processes import checks_of_rank


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system in memory of this size."""
    mounted = []

    def mount_at(size: str, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "none", folder]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            unavailable(f"mounting a file system is not permitted: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount_at
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def two_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in "ab":
        (folder / name).mkdir()
    (folder / "file").write_text("")
    return folder


@pytest.fixture(scope="session")
def of_two_processes(two_folders: Path) -> list[dict[str, list[Check]]]:
    return run_processes(checks_of_rank, 2, two_folders)
