"""Where all figures of a run go: one recorder hands each record to every sink, on rank 0 alone."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from dcdist.metrics.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

Kind = Literal["step", "clustering", "epoch", "evaluation", "event"]


class Sink(Protocol):
    """Takes records: {"kind", "stage", "epoch", "step", "time" (unix seconds), ...}.

    Values are numbers, strings, None, or mappings of names to numbers ("losses", "seconds").
    """

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes one record; it must not be changed."""
        ...

    def sync(self) -> None:
        """Returns when everything written so far is stored."""
        ...

    def close(self) -> None:
        """Stores what is left and frees what is held."""
        ...


class Recorder:
    """Hands records to its sinks; ranks other than 0 have none.

    Metrics must not stop a training: a sink that raises is closed, left out from then on, and named in one warning.

    Args:
        sinks: where records go.
        heartbeat: one of them, which hears of every step.
        started_at: when the job began (unix seconds), for the time to its first step; None where nobody asks.
    """

    def __init__(
        self, sinks: Sequence[Sink], heartbeat: Heartbeat | None = None, started_at: float | None = None
    ) -> None:
        self._sinks = list(sinks)
        self._heartbeat = heartbeat
        self._started_at = started_at

    def record(self, kind: Kind, stage: str, epoch: int, step: int, **values: Any) -> None:
        """Adds the time and hands the record on.

        Args:
            kind: "step", "clustering", "epoch", "evaluation" or "event".
            stage: name of the stage.
            epoch: of the stage, from 0.
            step: steps of the run that are done.
            values: the figures, by name.
        """
        record = {"kind": kind, "stage": stage, "epoch": epoch, "step": step, "time": time.time(), **values}
        self._each(lambda sink: sink.write(record))

    def step_done(self, stage: str, epoch: int, step: int) -> None:
        """Called after every step, of which few become records."""
        if self._started_at is not None:
            seconds, self._started_at = time.time() - self._started_at, None
            self.record("event", stage, epoch, step, event="first_step", seconds_from_start=seconds)
        if self._heartbeat in self._sinks:
            assert self._heartbeat is not None
            self._heartbeat.beat(epoch, step)

    def sync(self) -> None:
        """Returns when the sinks have stored all records; called at commits."""
        self._each(lambda sink: sink.sync())

    def close(self) -> None:
        """Closes every sink; further records go nowhere."""
        self._each(lambda sink: sink.close())
        self._sinks = []

    def _each(self, action: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                action(sink)
            except Exception as error:
                name = type(sink).__name__
                logger.warning("%s is left out from now on: %s: %s", name, type(error).__name__, error)
                self._sinks.remove(sink)
                with contextlib.suppress(Exception):
                    sink.close()
