"""Reading a run's checkpoints: the newest one of its line that is whole, on all ranks the same one."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from dcdist.commits import CheckpointName, Commit, DamagedCheckpointError, read_commit, verify_files
from dcdist.distributed.collectives import Collectives
from dcdist.engine.state_files import read_state
from dcdist.errors import RunError, UsageError
from dcdist.filesystems import StorageError
from dcdist.run_directory import RunDirectory
from dcdist.storage import Storage, open_storage

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """What survives a preemption: gives its state and takes it back.

    A state is a nesting of mappings, lists and tuples (which come back as lists) of tensors, JSON values and KeyedRows
    (which come back as StoredRows, usable until `load_state_dict` returns).
    """

    def state_dict(self) -> Mapping[str, Any]:
        """The state as it is now; the same on every rank, KeyedRows apart."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Takes over what `state_dict` gave."""
        ...


class StoredCheckpoint:
    """A whole checkpoint, open for reading; behind a URL its files are copied to a temporary folder until `close`."""

    def __init__(self, commit: Commit, storage: Storage) -> None:
        """Fetches and verifies all files. Raises DamagedCheckpointError, or StorageError where the server fails."""
        self.commit = commit
        self._resources = contextlib.ExitStack()
        try:
            if storage.local_path() is None:
                storage = self._download(storage)
            verify_files(storage, commit)
        except BaseException:
            self.close()
            raise
        folder = storage.local_path(commit.name.folder)
        assert folder is not None
        self._files = {name: folder / name for name in commit.files}

    def _download(self, remote: Storage) -> Storage:
        folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="dcdist-"))
        local = Path(folder, self.commit.name.folder)
        local.mkdir(parents=True)
        for name in self.commit.files:
            path = f"{self.commit.name.folder}/{name}"
            try:
                remote.download(path, local / name)
            except StorageError:
                raise
            except OSError as error:
                raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
        return open_storage(folder)

    @property
    def name(self) -> CheckpointName:
        return self.commit.name

    def state_names(self) -> list[str]:
        """Of the states that it holds."""
        return sorted(name.removesuffix(".json") for name in self._files if name.endswith(".json"))

    def read(self, name: str) -> Any:
        """One state, tensors on the CPU.

        Raises:
            RunError: the checkpoint has no state of this name.
        """
        if name not in self.state_names():
            raise RunError(
                f"checkpoint {self.name} has no state {name!r}, only {', '.join(self.state_names())}: "
                "another version of dcdist wrote it"
            )
        return read_state(name, self._files)

    def load_into(self, states: Mapping[str, Stateful]) -> None:
        """Each of them takes over the state of its name."""
        for name, state in states.items():
            state.load_state_dict(self.read(name))

    def close(self) -> None:
        """Removes temporary copies; StoredRows cannot be read any more."""
        self._resources.close()

    def __enter__(self) -> StoredCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_newest(
    run_directory: RunDirectory, line: Sequence[CheckpointName], collectives: Collectives
) -> StoredCheckpoint | None:
    """The newest checkpoint of a line that every rank finds whole. Collective, with the same line on each rank.

    Each that is passed over is warned of, with the file and what is wrong with it.

    Returns:
        None where the line is empty.

    Raises:
        RunError: there are checkpoints, and none is whole.
        StorageError: the server fails, for some rank: a checkpoint that cannot be read now is not passed over.
        UsageError: one was written by a dcdist with another format.
    """
    problems = []
    for name in reversed(line):
        stored, problem = _open(run_directory.storage, name)
        found = [problem for problem in collectives.all_gather_objects(problem) if problem is not None]
        if not found:
            assert stored is not None
            return stored
        if stored is not None:
            stored.close()
        for error in found:
            if isinstance(error, UsageError | StorageError):
                raise error
        problems.append(f"{name}: {found[0]}")
        if collectives.is_main:
            logger.warning("checkpoint %s is damaged and passed over: %s", name, found[0])
    if problems:
        raise RunError(
            f"{run_directory} has checkpoints, but none is whole ({'; '.join(problems)}): restore one of them, "
            "or start anew in another run.dir"
        )
    return None


def _open(storage: Storage, name: CheckpointName) -> tuple[StoredCheckpoint | None, Exception | None]:
    try:
        return StoredCheckpoint(read_commit(storage, name), storage), None
    except (DamagedCheckpointError, StorageError, UsageError) as error:
        return None, error
