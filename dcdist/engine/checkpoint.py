"""Saving so that a kill at any instant leaves the newest committed checkpoint whole, and going on from it.

    checkpoints/step-00000120-train.0002/     step, kind, attempt
        NAME.json                             a state's plain values
        NAME.safetensors                      its tensors
        NAME.rows-00001.safetensors           its rows that rank 1 held
        COMMIT.json                           written last: names the files above, with sizes and checksums

A checkpoint is written once and never changed. Every save commits a later moment of training than the one before.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from dcdist.commits import (
    COMMIT_FILE,
    CheckpointName,
    Commit,
    Kind,
    StoredFile,
    is_committed,
    list_checkpoints,
)
from dcdist.distributed.collectives import Collectives
from dcdist.engine.restore import Stateful, StoredCheckpoint, open_newest
from dcdist.engine.state_files import FlatState, HashingWriter, flatten, write_json, write_tensors
from dcdist.errors import RunError, Superseded
from dcdist.faults import fault_point
from dcdist.filesystems import StorageError
from dcdist.metrics.heartbeat import read_heartbeat
from dcdist.run_directory import Attempt, RunDirectory

logger = logging.getLogger(__name__)

MIN_KEPT = 2


class CheckpointFailed(RunError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpointer:
    """Saves and loads the states of one attempt. Its methods are collective: all ranks call them, in the same order.

    Args:
        run_directory: where.
        attempt: whose checkpoints these are; rank 0 writes its file.
        collectives: the ranks.
        identity_digest: of the run's identity, written into each commit.
        keep: how many committed checkpoints stay, at least 2, beside those of the ends of stages, which all stay.
    """

    def __init__(
        self,
        run_directory: RunDirectory,
        attempt: Attempt,
        collectives: Collectives,
        identity_digest: str,
        keep: int = MIN_KEPT,
    ) -> None:
        assert keep >= MIN_KEPT, f"keep={keep}: with fewer than {MIN_KEPT} a damaged one would be the end"
        self._run_directory = run_directory
        self._storage = run_directory.storage
        self._attempt = attempt
        self._collectives = collectives
        self._identity_digest = identity_digest
        self._keep = keep
        self.repeated_steps = 0  # known on rank 0 once the attempt has begun
        self._line: list[CheckpointName] | None = None  # this attempt's committed checkpoints, the oldest first

    @property
    def newest(self) -> CheckpointName | None:
        """The newest committed checkpoint that the attempt began from or wrote."""
        return self._line[-1] if self._line else None

    def begin(self) -> StoredCheckpoint | None:
        """Chooses the checkpoint to go on from, the newest whole one of the run's line, and records it.

        To be closed by the caller; `commit` in it tells position, identity digest and world size. What earlier attempts
        left half written is removed.

        Returns:
            None where the run has no checkpoint: it starts from nothing.

        Raises:
            Superseded: a newer attempt exists already.
            RunError: there are checkpoints, and none is whole.
            UsageError: the newest was written by a dcdist with another format.
        """
        assert self._line is None, "an attempt begins once"
        line = self._collectives.on_main(self._read_line)
        stored = open_newest(self._run_directory, line, self._collectives)
        name = None if stored is None else stored.name
        try:
            self._collectives.on_main(lambda: self._record_beginning(name))
        except BaseException:
            if stored is not None:
                stored.close()
            raise
        self._line = [] if name is None else line[: line.index(name) + 1]
        return stored

    def save(
        self, step: int, kind: Kind, states: Mapping[str, Stateful], position: Mapping[str, Any]
    ) -> CheckpointName:
        """Commits the states, then removes checkpoints that are not needed any more.

        Where a checkpoint of this moment, or of a later one, is committed already, nothing is written.

        Args:
            step: steps of the run that are done.
            kind: at equal step "train" comes before "final" before "clustered".
            states: name -> state. Rank 0 writes what is replicated, each rank its KeyedRows.
            position: where training is, JSON values, for readers of COMMIT.json.

        Returns:
            The name of the newest committed checkpoint.

        Raises:
            CheckpointFailed: some rank could not write; raised on all of them, and the commits before are untouched.
            Superseded: a newer attempt exists; nothing is committed.
        """
        assert self._line is not None, "an attempt begins (or loads) before it saves"
        name = CheckpointName(step, kind, self._attempt.number)
        if self.newest is not None and name.moment <= self.newest.moment:
            return self.newest
        fault_point("checkpoint:begin")
        self._collectives.on_main(lambda: self._check_before_writing(name))
        flat_states = {state_name: flatten(state.state_dict()) for state_name, state in states.items()}
        files, failure = self._write_files(name, flat_states)
        fault_point("checkpoint:data")
        reports = self._collectives.all_gather_objects((files, failure))
        failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(reports) if text is not None]
        if failures:
            self._discard(name)
            raise self._failure(name, "; ".join(failures))
        commit = Commit(
            name=name,
            position=dict(position),
            files={file: stored for files, _ in reports for file, stored in files.items()},
            world_size=self._collectives.world_size,
            identity_digest=self._identity_digest,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if not self._collectives.is_main:
            fault_point("checkpoint:commit")  # rank 0 passes it last thing before the commit
        self._collectives.on_main(lambda: self._commit(commit))
        fault_point("checkpoint:committed")
        self._line.append(name)
        if self._collectives.is_main:
            with self._warning_of_leftovers():
                self._prune(self._line)
        return name

    @contextlib.contextmanager
    def _naming_storage_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"the run directory {self._run_directory} does not answer as it should: {error}") from error

    def _read_line(self) -> list[CheckpointName]:
        with self._naming_storage_failures():
            return self._run_directory.line()

    def _record_beginning(self, name: CheckpointName | None) -> None:
        with self._naming_storage_failures():
            self._refuse_where_superseded()
            self.repeated_steps = self._steps_to_repeat(name)
            self._attempt.record_beginning(name, self.repeated_steps)
        with self._warning_of_leftovers():
            # The line is fixed now: whatever older attempts have not committed by now is of no use to anybody.
            for left in list_checkpoints(self._storage):
                if left.attempt < self._attempt.number and not is_committed(self._storage, left):
                    self._storage.remove_tree(left.folder)

    def _steps_to_repeat(self, began_from: CheckpointName | None) -> int:
        """How far the attempt before had come after the checkpoint that this one goes on from.

        Where a kill ended it: to the step on a local path, on an object store as far as its last heartbeat says.
        """
        beginnings = self._run_directory.beginnings()
        if not beginnings:
            return 0
        before = max(beginnings)
        began_at = beginnings[before]
        heartbeat = read_heartbeat(self._storage, self._run_directory.heartbeat_file(before))
        reached = int(heartbeat.get("step", began_at.step if began_at else 0))
        return max(0, reached - (began_from.step if began_from else 0))

    @contextlib.contextmanager
    def _warning_of_leftovers(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("old checkpoints in %s are not removed for now: %s", self._run_directory, error)

    def _refuse_where_superseded(self) -> None:
        newer = self._attempt.superseded_by()
        if newer is not None:
            raise Superseded(
                f"attempt {newer} has taken over the run {self._run_directory}: attempt {self._attempt.number} "
                "stops without another checkpoint"
            )

    def _check_before_writing(self, name: CheckpointName) -> None:
        with self._failing(name):
            self._refuse_where_superseded()
            assert name not in list_checkpoints(self._storage), f"{name} exists already, without being committed"

    @contextlib.contextmanager
    def _failing(self, name: CheckpointName) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(name, str(error)) from error

    def _write_files(
        self, name: CheckpointName, states: Mapping[str, FlatState]
    ) -> tuple[dict[str, StoredFile], str | None]:
        """Writes this rank's files. Returns them, and the failure that ended it, if one did."""
        writers: dict[str, Callable[[HashingWriter], None]] = {}
        for state_name, flat in states.items():
            if self._collectives.is_main:
                writers[f"{state_name}.json"] = lambda writer, flat=flat: write_json(flat.tree, writer)  # type: ignore[misc]
                writers[f"{state_name}.safetensors"] = lambda writer, flat=flat: write_tensors(flat.tensors, writer)  # type: ignore[misc]
            if flat.rows:
                file = f"{state_name}.rows-{self._collectives.rank:05d}.safetensors"
                writers[file] = lambda writer, flat=flat: write_tensors(flat.row_tensors(), writer)  # type: ignore[misc]
        files: dict[str, StoredFile] = {}
        for file, write in writers.items():
            path = f"{name.folder}/{file}"
            try:
                with self._storage.open_for_writing(path) as handle:
                    writer = HashingWriter(handle)
                    write(writer)
            except OSError as error:
                return files, str(error) if isinstance(error, StorageError) else f"{self._storage.url(path)}: {error}"
            files[file] = writer.stored_file()
        return files, None

    def _commit(self, commit: Commit) -> None:
        try:
            with self._failing(commit.name):
                for file, stored in commit.files.items():
                    path = f"{commit.name.folder}/{file}"
                    if self._size_of(path) != stored.size:
                        raise OSError(
                            f"{self._storage.url(path)} is not there with the {stored.size} bytes that a rank wrote: "
                            "do all machines see the same run.dir?"
                        )
                self._refuse_where_superseded()
                fault_point("checkpoint:commit")
                self._storage.write_bytes(f"{commit.name.folder}/{COMMIT_FILE}", commit.to_bytes())
        except Exception:
            self._discard(commit.name)
            raise

    def _size_of(self, path: str) -> int | None:
        try:
            return self._storage.size(path)
        except FileNotFoundError:
            return None

    def _discard(self, name: CheckpointName) -> None:
        """Removes what was written of a checkpoint that is not committed, where that is possible."""
        if self._collectives.is_main:
            with contextlib.suppress(OSError):
                self._storage.remove(f"{name.folder}/{COMMIT_FILE}")  # a commit may have arrived, its answer not
                self._storage.remove_tree(name.folder)

    def _failure(self, name: CheckpointName, reason: str) -> CheckpointFailed:
        newest = f"the newest good checkpoint is {self.newest}" if self.newest else "there is no checkpoint before it"
        return CheckpointFailed(
            f"checkpoint {self._storage.url(name.folder)} could not be written: {reason}; {newest}. "
            "Make room, or mend the storage, and run the same command again: it goes on from there"
        )

    def _prune(self, line: list[CheckpointName]) -> None:
        """Removes what comes before the newest commit and is not kept: of this attempt and of older ones alone."""
        kept = {*line[-self._keep :], *(name for name in line if name.kind == "final")}
        for name in list_checkpoints(self._storage):
            if name in kept or name.attempt > self._attempt.number or name.order > line[-1].order:
                continue
            if self._attempt.superseded_by() is not None:
                return  # a newer attempt may have begun from one of these
            # First the file that vouches for the others: half removed is not damaged.
            self._storage.remove(f"{name.folder}/{COMMIT_FILE}")
            fault_point("checkpoint:prune")
            self._storage.remove_tree(name.folder)
            fault_point("checkpoint:prune")
