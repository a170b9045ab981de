"""What is where in the folder of a run, and which of its attempts is in charge.

Each start of a run is an attempt with a number of its own; the newest owns the run from the instant that it has its
number. Names of files are paths relative to the run's folder, for its `storage`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from dcdist.commits import (
    CheckpointName,
    DamagedCheckpointError,
    is_committed,
    is_on_line,
    list_checkpoints,
    read_commit,
    verify_files,
)
from dcdist.errors import ExitCode, RunError, UsageError
from dcdist.storage import open_storage

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
KEYS = "keys.parquet"
ATTEMPTS = "attempts"
EVALUATIONS = "evaluations"
TENSORBOARD = "tensorboard"

_ATTEMPT_FILE = re.compile(r"(\d{4,})\.json")


@dataclass(frozen=True)
class CheckpointInfo:
    """A row of `dcdist checkpoints RUN`.

    `state` is "ok", "damaged: what is wrong", "uncommitted" (its writing was interrupted) or "superseded" (committed,
    but by an attempt after a newer one had begun elsewhere: never read). Of what cannot be read the rest is None.
    """

    name: CheckpointName
    state: str
    position: dict[str, Any] | None
    num_bytes: int | None
    time: str | None

    def line(self) -> str:
        """For the terminal."""
        if self.position is None or self.num_bytes is None:
            return f"{self.name}  {self.state}"
        where = "  ".join(f"{key} {self.position[key]}" for key in ("stage", "epoch") if key in self.position)
        return f"{self.name}  {where}  {self.num_bytes / 1e6:.1f} MB  {self.time}  {self.state}"


class RunDirectory:
    """The folder of a run, local or on any fsspec URL."""

    def __init__(self, url: str) -> None:
        self.storage = open_storage(url)
        self._left_out: set[int] = set()  # attempts of which `history` has warned

    def __str__(self) -> str:
        return self.storage.url()

    def attempt_file(self, attempt: int) -> str:
        return f"{ATTEMPTS}/{attempt:04d}.json"

    def stop_file(self, attempt: int) -> str:
        return f"{ATTEMPTS}/{attempt:04d}.stop"

    def heartbeat_file(self, attempt: int) -> str:
        return f"{ATTEMPTS}/{attempt:04d}.heartbeat"

    def metrics_file(self, attempt: int) -> str:
        return f"metrics/{attempt:04d}.jsonl"

    def log_file(self, attempt: int, rank: int) -> str:
        return f"logs/{attempt:04d}-rank-{rank}.log"

    def assignments_file(self, stage: str, epoch: int | Literal["final"]) -> str:
        return f"assignments/{stage}-{epoch}.parquet"

    def neighbors_file(self, stage: str) -> str:
        return f"neighbors/{stage}.parquet"

    def evaluation_file(self, kind: str) -> str:
        """The next one that is free of this kind, evaluations/KIND-NNNN.json."""
        pattern = re.compile(rf"{re.escape(kind)}-(\d{{4,}})\.json")
        taken = [int(match[1]) for match in map(pattern.fullmatch, self.storage.list(EVALUATIONS)) if match]
        return f"{EVALUATIONS}/{kind}-{max(taken, default=0) + 1:04d}.json"

    def write_keys(self, data: bytes) -> None:
        """Writes keys.parquet, where no earlier attempt did."""
        with contextlib.suppress(FileExistsError):
            self.storage.create_exclusive(KEYS, data)

    def attempt_numbers(self) -> list[int]:
        """All that were ever taken, ascending; one listing."""
        matches = map(_ATTEMPT_FILE.fullmatch, self.storage.list(ATTEMPTS))
        return sorted(int(match[1]) for match in matches if match)

    def begin_attempt(self, description: Mapping[str, Any]) -> Attempt:
        """Takes the next attempt number; from now on all older attempts are superseded.

        The order is: number, checkpoint to begin from, record of that checkpoint in the attempt's file, commits.

        - Killed before the record: the file lacks `began_from`. Such an attempt committed nothing (a save asserts the
          record), and lines pass it by: the next attempt goes on from the newest attempt that has a record.
        - Killed after the record, before a commit: the next attempt begins on this one's line, which ends at the
          recorded checkpoint; what others committed after it stays unread.
        - A straggler of an older attempt may commit until it looks for newer numbers, which each save does last thing
          before its commit. What it commits before the newer attempt lists the checkpoints may be chosen, rightly: all
          of it is valid work. What it commits later is past the recorded checkpoint, hence on no line.
        - Two attempts that start together take different numbers. The smaller one may still record a beginning, which
          harms nobody: lines of the larger run through the checkpoint that the larger one recorded.

        Args:
            description: JSON values: number of processes, versions, hardware, git state. When and where are added.
        """
        content = {
            **description,
            "began": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        number = max(self.attempt_numbers(), default=0)
        while True:
            number += 1
            try:
                self.storage.create_exclusive(self.attempt_file(number), _to_json({"attempt": number, **content}))
            except FileExistsError:
                continue
            return Attempt(self, number)

    def read_attempt(self, number: int) -> dict[str, Any]:
        """The content of attempts/NNNN.json.

        Raises:
            RunError: it is damaged.
        """
        path = self.attempt_file(number)
        try:
            content = json.loads(self.storage.read_bytes(path))
        except ValueError as error:
            content = error
        if not isinstance(content, dict):
            raise RunError(
                f"{self.storage.url(path)} is damaged ({content!r}): restore it, or remove it, after which the "
                "checkpoints of this attempt, and what came of them, are left out"
            )
        return content

    def beginnings(self) -> dict[int, CheckpointName | None]:
        """The checkpoint that each attempt began from, None for nothing; without attempts that have no record of it."""
        contents = {number: self.read_attempt(number) for number in self.attempt_numbers()}
        return {
            number: None if content["began_from"] is None else CheckpointName.parse(content["began_from"])
            for number, content in contents.items()
            if "began_from" in content
        }

    def line(self, attempt: int | None = None) -> list[CheckpointName]:
        """The committed checkpoints on the line of an attempt, by default of the newest one that has a record.

        The oldest first. These are the ones that count; whether they are undamaged is not looked at.
        """
        beginnings = self.beginnings()
        if not beginnings:
            return []
        last = attempt if attempt is not None else max(beginnings)
        names = [name for name in list_checkpoints(self.storage) if is_on_line(name, last, beginnings)]
        return [name for name in names if is_committed(self.storage, name)]

    def inventory(self) -> list[CheckpointInfo]:
        """All checkpoints, the oldest first. Those that count are verified, which reads every byte of them.

        Raises:
            UsageError: there is no run, or one was written by a dcdist with another format.
        """
        if not self.attempt_numbers():
            raise UsageError(f"{self} has no attempts: is this a run's folder (run.dir)?")
        line = set(self.line())
        return [self._info(name, name in line) for name in list_checkpoints(self.storage)]

    def _info(self, name: CheckpointName, is_on_line: bool) -> CheckpointInfo:
        if not is_committed(self.storage, name):
            return CheckpointInfo(name, "uncommitted", None, None, None)
        try:
            commit = read_commit(self.storage, name)
        except DamagedCheckpointError as error:
            return CheckpointInfo(name, f"damaged: {error}", None, None, None)
        state = "ok" if is_on_line else "superseded"
        if is_on_line:
            try:
                verify_files(self.storage, commit)
            except DamagedCheckpointError as error:
                state = f"damaged: {error}"
        return CheckpointInfo(name, state, commit.position, commit.num_bytes, commit.time)

    def request_stop(self, attempt: int | None = None) -> int:
        """Asks an attempt, by default the newest, to save and stop; attempts that start later run on.

        Returns:
            The attempt that was asked.

        Raises:
            UsageError: there is no such attempt, or it has ended.
        """
        numbers = self.attempt_numbers()
        asked = attempt if attempt is not None else max(numbers, default=0)
        if asked not in numbers:
            raise UsageError(
                f"{self} has no attempt {asked} to stop, it has {numbers or 'none'}: is this a run's folder?"
            )
        ended = self.read_attempt(asked).get("ended")
        if ended:
            raise UsageError(
                f"attempt {asked} of {self} has ended already ({ended['reason']}): nothing is to be stopped"
                + _how_to_cancel(self.read_attempt(asked).get("launcher"), ended["exit_code"])
            )
        self.storage.write_bytes(self.stop_file(asked), _to_json({"attempt": asked, "requested": _now()}))
        return asked

    def history(self, before: int) -> tuple[dict[str, int], int]:
        """How often attempts below `before` ended by each reason, ends of a finished run left out, and the training
        steps that they repeated.

        Reasons: the name of a signal; "killed", where nobody was left to say; "peer_lost", "stopped" (on request, or
        superseded), "refused" (wrong usage), "failed".

        These are figures alone, for which no run must fail: a damaged file is left out, with one warning.
        """
        reasons: dict[str, int] = {}
        repeated_steps = 0
        for number in self.attempt_numbers():
            if number >= before:
                continue
            try:
                reason, repeated = _how_ended(self.read_attempt(number))
            except OSError:
                raise
            except (RunError, AttributeError, KeyError, TypeError, ValueError) as error:
                if number not in self._left_out:
                    self._left_out.add(number)
                    path = self.storage.url(self.attempt_file(number))
                    logger.warning("%s is damaged, its restart is not counted: %r", path, error)
                continue
            repeated_steps += repeated
            if reason is not None:
                reasons[reason] = reasons.get(reason, 0) + 1
        return reasons, repeated_steps

    def attempts_without_progress(self, before: int | None = None) -> int:
        """How many attempts in a row, the newest ones (below `before`), failed without a new commit.

        Where the third would be started again, it should not be. Attempts that count have ended with exit code 1 or 75,
        not by a signal. The row is broken by a commit, by an end on request, by a finished run, by a wrong config
        (these do not start again by themselves), by a signal, and by an attempt whose file says nothing of its end:
        nobody was left to write that, so it was killed, unless a launcher that outlived it notes another end.
        """
        count = 0
        for number in reversed(self.attempt_numbers()):
            if before is not None and number >= before:
                continue
            ended = self.read_attempt(number).get("ended")
            if ended is None or ended["signal"] is not None or ended["last_commit"] is not None:
                break
            if ended["exit_code"] not in (ExitCode.FAILURE, ExitCode.RUN_AGAIN):
                break
            count += 1
        return count


class Attempt:
    """One start of a run. Its file has one writer at a time: rank 0, and after all ranks have ended, their launcher."""

    def __init__(self, run_directory: RunDirectory, number: int) -> None:
        self.run_directory = run_directory
        self.number = number

    def superseded_by(self) -> int | None:
        """The number of the newest attempt where that is not this one; one listing."""
        newest = max(self.run_directory.attempt_numbers(), default=self.number)
        return newest if newest > self.number else None

    def stop_requested(self) -> bool:
        """Whether this attempt was asked to stop."""
        return self.run_directory.storage.exists(self.run_directory.stop_file(self.number))

    def has_begun(self) -> bool:
        """Whether the checkpoint that it began from (or that there was none) is recorded."""
        return "began_from" in self.run_directory.read_attempt(self.number)

    def record_beginning(self, began_from: CheckpointName | None, repeated_steps: int = 0) -> None:
        """Fixes the line of this attempt: the checkpoint that it goes on from, None for a start from nothing. Once.

        Args:
            began_from: the checkpoint.
            repeated_steps: training steps of the attempt before that came after it, and are done again.
        """
        assert not self.has_begun(), f"attempt {self.number} has begun already"
        name = None if began_from is None else str(began_from)
        self._add({"began_from": name, "repeated_steps": repeated_steps})

    def record_end(self, exit_code: int, reason: str, signal: str | None = None) -> None:
        """Writes why the attempt ended, unless that is known already (rank 0 knows better than its launcher).

        Args:
            exit_code: of the whole attempt.
            reason: one sentence.
            signal: the name of the signal that ended it, None for all other ends.
        """
        if "ended" in self.run_directory.read_attempt(self.number):
            return
        storage = self.run_directory.storage
        own = [name for name in list_checkpoints(storage) if name.attempt == self.number]
        commits = [str(name) for name in own if is_committed(storage, name)]
        self._add(
            {
                "ended": {
                    "when": _now(),
                    "exit_code": int(exit_code),
                    "reason": reason,
                    "signal": signal,
                    "last_commit": commits[-1] if commits else None,
                }
            }
        )

    def give_up(self, reason: str) -> None:
        """Makes a failure of an end after which the run would be started again."""
        ended = self.run_directory.read_attempt(self.number)["ended"]
        self._add({"ended": {**ended, "exit_code": int(ExitCode.FAILURE), "reason": reason}})

    def _add(self, entries: Mapping[str, Any]) -> None:
        content = self.run_directory.read_attempt(self.number)
        self.run_directory.storage.write_bytes(
            self.run_directory.attempt_file(self.number), _to_json({**content, **entries})
        )


_REASONS = {
    ExitCode.DONE: None,
    ExitCode.RUN_AGAIN: "peer_lost",
    ExitCode.STOPPED: "stopped",
    ExitCode.USAGE: "refused",
    ExitCode.FAILURE: "failed",
}


def _how_ended(attempt: Mapping[str, Any]) -> tuple[str | None, int]:
    """The reason, None of a finished run, and the steps that it repeated."""
    repeated_steps = int(attempt.get("repeated_steps", 0))
    ended = attempt.get("ended")
    if ended is None:
        return "killed", repeated_steps
    if ended.get("signal"):
        return str(ended["signal"]), repeated_steps
    return _REASONS[ExitCode(ended["exit_code"])], repeated_steps


def _how_to_cancel(launcher: Mapping[str, Any] | None, exit_code: int) -> str:
    """The rest of a message: a job that waits to start again sees no request."""
    if exit_code != ExitCode.RUN_AGAIN or launcher is None:
        return ""
    commands = {"slurm": "scancel", "ray": "ray job stop", "kubernetes": "kubectl delete job"}
    command = commands.get(launcher["name"])
    return f". Where its job waits to start again: {command} {launcher['job']}" if command else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
