"""How a run stands now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dcdist.commits import Commit, DamagedCheckpointError, read_commit
from dcdist.errors import ExitCode, UsageError
from dcdist.metrics.heartbeat import EVERY_SECONDS, read_heartbeat
from dcdist.metrics.jsonl import parse_record, plain
from dcdist.metrics.progress import Position, format_duration
from dcdist.run_directory import RunDirectory
from dcdist.status.growing import GrowingLines
from dcdist.storage import UPLOAD_EVERY_SECONDS

ENDS: Mapping[int, str] = {
    ExitCode.DONE: "done",
    ExitCode.RUN_AGAIN: "preempted",
    ExitCode.STOPPED: "stopped",
    ExitCode.FAILURE: "failed",
    ExitCode.USAGE: "refused",
}

ENDED = ("done", "stopped", "failed", "refused")  # a preempted run waits to be started again


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run's newest attempt; None is unknown, or does not apply any more.

    `state`: starting, running, stopping (asked to), silent (its heartbeat stopped: killed, or its machine is gone),
    preempted (waits to be started again), done, stopped, failed or refused. Times are in seconds.
    """

    run: str
    state: str
    attempt: int
    restarts: int  # attempts after the first
    restart_reasons: dict[str, int]  # why those before the newest ended (`RunDirectory.history`) -> how many
    attempt_age_seconds: float
    repeated_steps: int  # training steps that kills made earlier attempts lose, over all restarts
    num_processes: int | None
    launcher: dict[str, Any] | None
    stage: str | None
    phase: str | None
    epoch: int | None  # from 0
    num_epochs: int | None
    step: int | None
    until_step: int | None
    loss: float | None
    samples_per_second: float | None
    remaining_seconds: float | None  # of the stage, at the pace since this attempt began it, all phases included
    last_checkpoint: str | None
    last_checkpoint_age_seconds: float | None
    heartbeat_age_seconds: float | None
    progress_age_seconds: float | None
    reason: str | None  # why the attempt ended

    def to_json(self) -> dict[str, Any]:
        """Values of strict JSON, also where heartbeats of older runs have NaN."""
        return {name: plain(value) for name, value in asdict(self).items()}

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{self.run}: {self.state}" + (f" ({self.reason})" if self.reason else "")]
        position = self.position()
        if position:
            lines.append(", ".join(position))
        figures = []
        if self.loss is not None:
            figures.append(f"loss {self.loss:.4f}")
        if self.samples_per_second is not None:
            figures.append(f"{self.samples_per_second:.0f} samples/s")
        if self.remaining_seconds:  # training may be over while the final clustering is not
            figures.append(f"{format_duration(self.remaining_seconds)} left")
        if figures:
            lines.append(", ".join(figures))
        lines.append(self.checkpoint_line())
        if self.progress_line() is not None:
            lines.append(str(self.progress_line()))
        lines.append(self.attempts_line())
        return lines

    @property
    def is_active(self) -> bool:
        """Whether it trains, as far as anybody knows."""
        return self.state in ("running", "stopping")

    def position(self) -> list[str]:
        """Stage, epoch, step and phase, as far as they are known."""
        if self.stage is None or self.epoch is None:
            return []
        of_epochs = f" of {self.num_epochs}" if self.num_epochs else ""
        of_steps = f" of {self.until_step}" if self.until_step else ""
        epoch = min(self.epoch + 1, self.num_epochs or self.epoch + 1)
        parts = [self.stage, f"epoch {epoch}{of_epochs}", f"step {self.step}{of_steps}"]
        return [*parts, self.phase] if self.phase and self.is_active else parts

    def checkpoint_line(self) -> str:
        """The newest checkpoint and its age."""
        if self.last_checkpoint is None or self.last_checkpoint_age_seconds is None:
            return "no checkpoint yet"
        return f"last checkpoint {self.last_checkpoint}, {format_duration(self.last_checkpoint_age_seconds)} ago"

    def progress_line(self) -> str | None:
        """The age of the newest progress, of a run that should make some."""
        if self.progress_age_seconds is None or not (self.is_active or self.state == "silent"):
            return None
        return f"last sign of progress {format_duration(self.progress_age_seconds)} ago"

    def attempts_line(self) -> str:
        """Restarts with their reasons, and who runs the newest attempt."""
        reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in self.restart_reasons.items())
        restarts = f"{self.restarts} restart{'s' * (self.restarts != 1)}" + (f" ({reasons})" if reasons else "")
        return f"attempt {self.attempt}, {restarts}, {self.repeated_steps} steps repeated{self._where()}"

    def _where(self) -> str:
        if self.launcher is None:
            return ""
        job = f" job {self.launcher['job']}" if "job" in self.launcher else ""
        return f"; {self.num_processes} process{'es' * (self.num_processes != 1)}, {self.launcher['name']}{job}"


class StatusReader:
    """Reads how a run stands, again and again: what cannot change any more is read once.

    Args:
        url: the run directory.
    """

    def __init__(self, url: str) -> None:
        self.run = _RememberingRunDirectory(url)
        self.attempts: list[int] = []  # the numbers of all, at the last reading
        self._pace: _Pace | None = None
        self._seen: tuple[int, float] | None = None  # attempt and time of the newest heartbeat, as it says
        self._changed_at = 0.0  # when another one was there than at the look before

    def read(self, now: float | None = None) -> RunStatus:
        """The state of the run.

        Args:
            now: unix seconds, by default this machine's clock.

        Raises:
            UsageError: there is no run.
            RunError: the file of an attempt is damaged.
            OSError: the storage fails.
        """
        run = self.run
        now = time.time() if now is None else now
        numbers = run.attempt_numbers()
        if not numbers:
            raise UsageError(f"{run} has no attempts: is this a run's folder (run.dir)?")
        self.attempts = numbers
        newest, heartbeat = run.read_attempt(numbers[-1]), read_heartbeat(run.storage, run.heartbeat_file(numbers[-1]))
        reasons, repeated_steps = run.history(before=numbers[-1])
        name, commit = _newest_whole_commit(run)
        state = _state(run, numbers[-1], newest, heartbeat, now, self._alive_at(numbers[-1], newest, heartbeat, now))
        is_training = state in ("running", "stopping")
        saved = commit.position if commit else {}
        # Until an attempt has begun a stage its heartbeat names the run's first, wherever the run goes on.
        position = {**saved, **heartbeat} if "num_epochs" in heartbeat else {**heartbeat, **saved}
        return RunStatus(
            run=str(run),
            state=state,
            attempt=numbers[-1],
            restarts=len(numbers) - 1,
            restart_reasons=reasons,
            attempt_age_seconds=_age(datetime.fromisoformat(newest["began"]).timestamp(), now),
            repeated_steps=repeated_steps + newest.get("repeated_steps", 0),
            num_processes=newest.get("num_processes"),
            launcher=newest.get("launcher"),
            stage=position.get("stage") or None,
            phase=heartbeat.get("phase"),
            epoch=position.get("epoch"),
            num_epochs=heartbeat.get("num_epochs"),
            step=position.get("step"),
            until_step=heartbeat.get("until_step"),
            loss=heartbeat.get("loss"),
            samples_per_second=heartbeat.get("samples_per_second") if is_training else None,
            remaining_seconds=self._remaining_seconds(numbers[-1], heartbeat) if is_training else None,
            last_checkpoint=name,
            last_checkpoint_age_seconds=_age(datetime.fromisoformat(commit.time).timestamp(), now) if commit else None,
            heartbeat_age_seconds=_age(heartbeat["time"], now) if "time" in heartbeat else None,
            progress_age_seconds=_age(heartbeat["progressed"], now) if "progressed" in heartbeat else None,
            reason=newest["ended"]["reason"] if "ended" in newest and newest["ended"]["exit_code"] else None,
        )

    def _alive_at(self, number: int, attempt: dict[str, Any], heartbeat: dict[str, Any], now: float) -> float:
        """When the attempt was alive, as it says; but who sees its heartbeat change needs no clock like its own."""
        said: float = heartbeat.get("time") or datetime.fromisoformat(attempt["began"]).timestamp()
        before, self._seen = self._seen, (number, said)
        if before is not None and before != self._seen:
            self._changed_at = now
        return max(said, self._changed_at)

    def _remaining_seconds(self, attempt: int, heartbeat: Mapping[str, Any]) -> float | None:
        if self._pace is None or self._pace.attempt != attempt:
            self._pace = _Pace(self.run, attempt)
        return self._pace.remaining_seconds(heartbeat)


class _Pace:
    """How fast an attempt goes, from the record of where and when it began its stage, which is looked for once."""

    def __init__(self, run: RunDirectory, attempt: int) -> None:
        self.attempt = attempt
        self._lines = GrowingLines(run.storage, run.metrics_file(attempt))
        self._begun: dict[str, Position] = {}  # stage -> where it began

    def remaining_seconds(self, heartbeat: Mapping[str, Any]) -> float | None:
        if not {"stage", "step", "time"} <= heartbeat.keys():
            return None
        if heartbeat["stage"] not in self._begun:
            self._read_on(heartbeat["stage"])
        position = self._begun.get(heartbeat["stage"])
        if position is None:
            return None
        position.step = heartbeat["step"]
        return position.remaining_seconds(heartbeat["time"])

    def _read_on(self, stage: str) -> None:
        """To where the stage begins. What begins before it is kept: the heartbeat may come later than the records."""
        for line in self._lines.new():
            record = parse_record(line) if b'"stage_begin"' in line else None
            if record is not None and {"num_epochs", "until_step"} <= record.keys():
                self._begun[record["stage"]] = Position()
                self._begun[record["stage"]].update(record)
                if record["stage"] == stage:
                    return


class _RememberingRunDirectory(RunDirectory):
    """Reads the files of attempts that have ended once: nobody changes them any more."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._ended: dict[int, dict[str, Any]] = {}

    def read_attempt(self, number: int) -> dict[str, Any]:
        content = self._ended.get(number)
        if content is None:
            content = super().read_attempt(number)
            if "ended" in content:
                self._ended[number] = content
        return content


def read_status(url: str, now: float | None = None) -> RunStatus:
    """Reads a run's folder once; arguments and errors are those of `StatusReader`."""
    return StatusReader(url).read(now)


def _state(
    run: RunDirectory, number: int, attempt: dict[str, Any], heartbeat: dict[str, Any], now: float, alive_at: float
) -> str:
    if "ended" in attempt:
        return ENDS.get(attempt["ended"]["exit_code"], "failed")
    is_local = run.storage.local_path() is not None
    # Three heartbeats that did not come; clocks of machines may differ by a little.
    patience = 3 * (EVERY_SECONDS if is_local else UPLOAD_EVERY_SECONDS) + 15
    if now - alive_at > patience:
        return "silent"
    if run.storage.exists(run.stop_file(number)):
        return "stopping"
    return "running" if "step" in heartbeat else "starting"


def _newest_whole_commit(run: RunDirectory) -> tuple[str | None, Commit | None]:
    """Of a checkpoint that can be read; `dcdist checkpoints` names those that cannot."""
    for name in reversed(run.line()):
        with contextlib.suppress(DamagedCheckpointError):
            return str(name), read_commit(run.storage, name)
    return None, None


def _age(then: float, now: float) -> float:
    """In seconds; none is negative, whatever other machines' clocks say."""
    return max(0.0, now - then)
