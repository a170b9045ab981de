"""Where all figures of a run go: one recorder hands each record to every sink, on rank 0 alone."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from dcdist.errors import Preempted

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


@runtime_checkable
class Follower(Sink, Protocol):
    """A sink that also hears of what is too frequent for records."""

    def step_done(self, epoch: int, step: int, seconds: float, /) -> None:
        """A step of the run is done, after so many seconds, waiting for its images included."""
        ...

    def progressed(self) -> None:
        """The run has passed a step, a batch of features or an iteration of a clustering."""
        ...


SinkType = TypeVar("SinkType", bound=Sink)


class Retried:
    """A block that may fail, because it comes again: a disk may be full, or a server away, for a while.

    The first error is a warning, those that follow are not, until the block has succeeded again.

    Args:
        what: what the warning says of the time until then.
        errors: what it may fail by.
    """

    def __init__(self, what: str, errors: type[Exception] = OSError) -> None:
        self._what = what
        self._errors = errors
        self._is_failing = False

    def __enter__(self) -> None:
        """Nothing is held."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        is_failing = isinstance(error, self._errors)
        if is_failing and not self._is_failing:
            logger.warning("%s for now: %s", self._what, error)
        self._is_failing = is_failing
        return is_failing


class Recorder:
    """Hands records to its sinks; ranks other than 0 have none.

    Metrics must not stop a training: a sink that raises is closed, left out from then on, and named in one warning.

    Args:
        sinks: where records go.
        started_at: when the job began (unix seconds), for the time to its first step; None where nobody asks.
    """

    def __init__(self, sinks: Sequence[Sink], started_at: float | None = None) -> None:
        self._sinks = list(sinks)
        self._followers = [sink for sink in sinks if isinstance(sink, Follower)]
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
        self._each(self._sinks, lambda sink: sink.write(record))

    def step_done(self, stage: str, epoch: int, step: int, seconds: float) -> None:
        """Called after every step, of which few become records; `seconds` is how long it took."""
        if self._started_at is not None:
            from_start, self._started_at = time.time() - self._started_at, None
            self.record("event", stage, epoch, step, event="first_step", seconds_from_start=from_start)
        self._each(self._followers, lambda follower: follower.step_done(epoch, step, seconds))

    def progressed(self) -> None:
        """Called at every boundary: after a step, a batch of features, an iteration of a clustering."""
        self._each(self._followers, lambda follower: follower.progressed())

    def sync(self) -> None:
        """Returns when the sinks have stored all records; called at commits."""
        self._each(self._sinks, lambda sink: sink.sync())

    def close(self) -> None:
        """Closes every sink; further records go nowhere."""
        self._each(self._sinks, lambda sink: sink.close())
        self._sinks, self._followers = [], []

    def _each(self, sinks: Sequence[SinkType], action: Callable[[SinkType], None]) -> None:
        for sink in tuple(sinks):
            try:
                action(sink)
            except Preempted:  # of a signal that is acted on at once, wherever it arrives: no failure of the sink
                raise
            except Exception as error:
                name = type(sink).__name__
                logger.warning("%s is left out from now on: %s: %s", name, type(error).__name__, error)
                self._sinks.remove(sink)
                self._followers = [follower for follower in self._followers if follower is not sink]
                with contextlib.suppress(Exception):
                    sink.close()
