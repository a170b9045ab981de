"""How a run stands, from its folder alone: what `dcdist status` prints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dcdist.commits import read_commit
from dcdist.errors import ExitCode, UsageError
from dcdist.metrics.heartbeat import EVERY_SECONDS, read_heartbeat
from dcdist.metrics.progress import format_duration
from dcdist.run_directory import RunDirectory
from dcdist.storage import UPLOAD_EVERY_SECONDS

ENDS = {
    ExitCode.DONE: "done",
    ExitCode.RUN_AGAIN: "preempted",
    ExitCode.STOPPED: "stopped",
    ExitCode.FAILURE: "failed",
    ExitCode.USAGE: "refused",
}


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
    remaining_seconds: float | None  # of the stage's training, at the newest rate
    last_checkpoint: str | None
    last_checkpoint_age_seconds: float | None
    heartbeat_age_seconds: float | None
    progress_age_seconds: float | None
    reason: str | None  # why the attempt ended

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{self.run}: {self.state}" + (f" ({self.reason})" if self.reason else "")]
        if self.stage is not None and self.epoch is not None:
            of_epochs = f" of {self.num_epochs}" if self.num_epochs else ""
            of_steps = f" of {self.until_step}" if self.until_step else ""
            epoch = min(self.epoch + 1, self.num_epochs or self.epoch + 1)
            lines.append(
                f"{self.stage}, epoch {epoch}{of_epochs}, step {self.step}{of_steps}"
                + (f", {self.phase}" if self.phase and self.state in ("running", "stopping") else "")
            )
        figures = []
        if self.loss is not None:
            figures.append(f"loss {self.loss:.4f}")
        if self.samples_per_second is not None:
            figures.append(f"{self.samples_per_second:.0f} samples/s")
        if self.remaining_seconds is not None:
            figures.append(f"{format_duration(self.remaining_seconds)} left")
        if figures:
            lines.append(", ".join(figures))
        if self.last_checkpoint is not None and self.last_checkpoint_age_seconds is not None:
            age = format_duration(self.last_checkpoint_age_seconds)
            lines.append(f"last checkpoint {self.last_checkpoint}, {age} ago")
        else:
            lines.append("no checkpoint yet")
        if self.state in ("running", "stopping", "silent") and self.progress_age_seconds is not None:
            lines.append(f"last sign of progress {format_duration(self.progress_age_seconds)} ago")
        restarts = f"attempt {self.attempt}, {self.restarts} restart{'s' * (self.restarts != 1)}"
        lines.append(f"{restarts}, {self.repeated_steps} steps repeated{self._where()}")
        return lines

    def _where(self) -> str:
        if self.launcher is None:
            return ""
        job = f" job {self.launcher['job']}" if "job" in self.launcher else ""
        return f"; {self.num_processes} processes, {self.launcher['name']}{job}"


def read_status(url: str, now: float | None = None) -> RunStatus:
    """Reads a run's folder.

    Args:
        url: the run directory.
        now: unix seconds, by default this machine's clock.

    Raises:
        UsageError: there is no run.
    """
    run = RunDirectory(url)
    now = time.time() if now is None else now
    numbers = run.attempt_numbers()
    if not numbers:
        raise UsageError(f"{run} has no attempts: is this a run's folder (run.dir)?")
    attempts = [run.read_attempt(number) for number in numbers]
    newest, heartbeat = attempts[-1], read_heartbeat(run.storage, run.heartbeat_file(numbers[-1]))
    line = run.line()
    commit = read_commit(run.storage, line[-1]) if line else None
    state = _state(run, numbers[-1], newest, heartbeat, now)
    is_training = state in ("running", "stopping")
    rate = heartbeat.get("samples_per_second") if is_training else None
    position = {**(commit.position if commit else {}), **heartbeat}
    return RunStatus(
        run=str(run),
        state=state,
        attempt=numbers[-1],
        restarts=len(numbers) - 1,
        repeated_steps=sum(attempt.get("repeated_steps", 0) for attempt in attempts),
        num_processes=newest.get("num_processes"),
        launcher=newest.get("launcher"),
        stage=position.get("stage") or None,
        phase=heartbeat.get("phase"),
        epoch=position.get("epoch"),
        num_epochs=heartbeat.get("num_epochs"),
        step=position.get("step"),
        until_step=heartbeat.get("until_step"),
        loss=heartbeat.get("loss"),
        samples_per_second=rate,
        remaining_seconds=_remaining_seconds(heartbeat) if is_training else None,
        last_checkpoint=str(line[-1]) if line else None,
        last_checkpoint_age_seconds=now - datetime.fromisoformat(commit.time).timestamp() if commit else None,
        heartbeat_age_seconds=now - heartbeat["time"] if "time" in heartbeat else None,
        progress_age_seconds=now - heartbeat["progressed"] if "progressed" in heartbeat else None,
        reason=newest["ended"]["reason"] if "ended" in newest and newest["ended"]["exit_code"] else None,
    )


def _state(run: RunDirectory, number: int, attempt: dict[str, Any], heartbeat: dict[str, Any], now: float) -> str:
    if "ended" in attempt:
        return ENDS[ExitCode(attempt["ended"]["exit_code"])]
    is_local = run.storage.local_path() is not None
    # Three heartbeats that did not come; clocks of machines may differ by a little.
    patience = 3 * (EVERY_SECONDS if is_local else UPLOAD_EVERY_SECONDS) + 15
    alive_at = heartbeat.get("time") or datetime.fromisoformat(attempt["began"]).timestamp()
    if now - alive_at > patience:
        return "silent"
    if run.storage.exists(run.stop_file(number)):
        return "stopping"
    return "running" if "step" in heartbeat else "starting"


def _remaining_seconds(heartbeat: dict[str, Any]) -> float | None:
    """By the newest rate; clusterings still to come are not in it."""
    rate, samples_per_step = heartbeat.get("samples_per_second"), heartbeat.get("samples_per_step")
    if not rate or not samples_per_step or "until_step" not in heartbeat:
        return None
    return float(max(0, heartbeat["until_step"] - heartbeat["step"]) * samples_per_step / rate)
