"""What a person sees while a run goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

PLAIN_EVERY_SECONDS = 5.0
_QUIET_EVENTS = {
    *("phase", "phase_done", "checkpoint", "stage_begin", "first_step", "plan", "machines", "end"),
    "clusters_of_before",
}


def progress_sink(console: Console) -> TerminalProgress | PlainProgress:
    """The sink that suits the console."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)


class Position:
    """Where the run is, from the records; the event "stage_begin" tells how far it goes."""

    def __init__(self) -> None:
        self.stage = ""
        self.phase = ""
        self.epoch = self.step = 0
        self.num_epochs: int | None = None
        self.until_step: int | None = None  # the run's step at which the stage ends
        self.loss: float | None = None
        self.samples_per_second: float | None = None
        self._began_at = 0.0
        self._began_step = 0

    def update(self, record: Mapping[str, Any]) -> None:
        self.stage, self.epoch, self.step = record["stage"], record["epoch"], record["step"]
        if record["kind"] == "step":
            self.loss, self.samples_per_second = record["loss"], record["samples_per_second"]
        elif record["kind"] == "event" and record["event"] == "phase":
            self.phase = record["phase"]
        elif record["kind"] == "event" and record["event"] == "stage_begin":
            self.num_epochs, self.until_step = record["num_epochs"], record["until_step"]
            self._began_at, self._began_step = record["time"], record["step"]
            self.loss = self.samples_per_second = None

    def remaining_seconds(self, now: float) -> float | None:
        """At the pace since this process began the stage, all phases included."""
        done = self.step - self._began_step
        if self.until_step is None or done <= 0:
            return None
        return (now - self._began_at) / done * (self.until_step - self.step)

    def describe(self, now: float) -> str:
        """One line without the step."""
        of_epochs = f"/{self.num_epochs}" if self.num_epochs is not None else ""
        parts = [f"{self.stage} epoch {self.epoch + 1}{of_epochs}"]
        if self.phase:
            parts.append(self.phase)
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.samples_per_second is not None:
            parts.append(f"{self.samples_per_second:.0f} samples/s")
        remaining = self.remaining_seconds(now)
        if remaining is not None:
            parts.append(f"{format_duration(remaining)} left")
        return ", ".join(parts)


class PlainProgress:
    """A line at each clustering, epoch, evaluation and event; of steps one every few seconds at most."""

    def __init__(self, console: Console, every_seconds: float = PLAIN_EVERY_SECONDS) -> None:
        self._console = console
        self._every_seconds = every_seconds
        self._position = Position()
        self._printed_at: float | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        self._position.update(record)
        now = record["time"]
        line = describe_record(record)
        if line is None and record["kind"] == "step":
            recently = self._printed_at is not None and now - self._printed_at < self._every_seconds
            line = None if recently else f"step {record['step']}: {self._position.describe(now)}"
        if line is not None:
            self._printed_at = now
            self._console.print(Text(line), soft_wrap=True)

    def sync(self) -> None:
        """Lines are out as soon as they are printed."""

    def close(self) -> None:
        """Nothing is held."""


class TerminalProgress:
    """A bar that stays on the last line, above it the lines of clusterings, epochs and events."""

    def __init__(self, console: Console) -> None:
        self._position = Position()
        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]} {task.description}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=None, count="")
        self._bar.start()

    def write(self, record: Mapping[str, Any]) -> None:
        position = self._position
        position.update(record)
        line = describe_record(record)
        if line is not None:
            self._bar.console.print(Text(line))
        of_steps = f"/{position.until_step}" if position.until_step is not None else ""
        self._bar.update(
            self._task,
            total=position.until_step,
            completed=position.step,
            count=f"{position.step}{of_steps}",
            description=position.describe(time.time()),
        )

    def sync(self) -> None:
        """The bar redraws itself."""

    def close(self) -> None:
        self._bar.stop()


def describe_record(record: Mapping[str, Any]) -> str | None:
    """The line of a record that always has one."""
    where = f"{record['stage']} epoch {record['epoch'] + 1}" if record["stage"] else "run"
    kind = record["kind"]
    if kind == "clustering":
        text = (
            f"clusters: K {record['num_clusters']}, objective {record['objective']:.4f}, "
            f"size entropy {record['size_entropy_ratio']:.3f}, largest {record['size_max_ratio']:.1%}, "
            f"refilled {record['num_empty_repaired']}"
        )
        for name, label in (
            ("changed_ratio", "changed"),
            ("nmi_previous", "NMI previous"),
            ("nmi_targets", "NMI labels"),
        ):
            if name in record:
                text += f", {label} {record[name]:.3f}"
        return f"{where}, {text}"
    if kind == "epoch":
        loss = "" if record["loss"] is None else f"loss {record['loss']:.4f}, "
        if "heldout_loss" in record:
            loss += f"held-out {record['heldout_loss']:.4f}, "
        seconds = sum(record["seconds"].values())
        speed = f"{record['samples_per_second']:.0f} samples/s, {record['data_wait_ratio']:.1%} waiting for data"
        return f"{where} done: {loss}{speed}, {format_duration(seconds)}"
    if kind == "evaluation":
        figures = [
            f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float) and name != "time"
        ]
        return f"{where}, evaluation: {', '.join(figures)}"
    if kind == "event" and record["event"] == "start":
        began_from = record["began_from"]
        return f"attempt {record['attempt']} " + (f"goes on from {began_from}" if began_from else "begins")
    if kind == "event" and record["event"] == "stage_done":
        text = f"{record['stage']} done: {record['num_clusters']} final clusters, size entropy "
        text += f"{record['size_entropy_ratio']:.3f}, largest {record['size_max_ratio']:.1%}"
        return text + (f", NMI labels {record['nmi_targets']:.3f}" if "nmi_targets" in record else "")
    if kind == "event" and record["event"] not in _QUIET_EVENTS:
        if "message" in record:
            return f"{where}: {record['message']}"
        known = {"kind", "stage", "epoch", "step", "time", "event"}
        values = [f"{name} {value}" for name, value in record.items() if name not in known]
        return ": ".join([f"{where}, {record['event']}", *([", ".join(values)] if values else [])])
    return None


def format_duration(seconds: float) -> str:
    """Like 8 s, 3:05 or 2:03:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
