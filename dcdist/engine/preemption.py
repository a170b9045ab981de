"""Signals and requests that end a run early. Handlers only set a flag; all ranks act on it together, at a boundary."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import FrameType

from dcdist.errors import Preempted

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Request(IntEnum):
    """What a boundary asks of every rank; where ranks differ the largest wins."""

    NONE = 0
    SAVE = 1  # a checkpoint is due
    PREEMPT = 2  # save, exit 75
    STOP = 3  # save, exit 3: somebody asked for it
    YIELD = 4  # a newer attempt owns the run: save nothing, exit 3


class SignalFlag:
    """Remembers that one of the signals came; installed as early as possible, before heavy imports."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._at_once = False

    def install(self) -> SignalFlag:
        """Takes over the signals. Only the main thread may do this."""
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        if self._at_once:
            raise Preempted(self.number.name)

    @contextlib.contextmanager
    def acted_on_at_once(self) -> Iterator[None]:
        """Inside, in the main thread, a signal raises Preempted where it arrives: everything is saved already."""
        self._at_once = True
        try:
            if self.number is not None:
                raise Preempted(self.number.name)
            yield
        finally:
            self._at_once = False


class Watch:
    """Asks a question of slow storage in a thread of its own, so that no step waits for it.

    Args:
        ask: returns the answer, or NONE; may raise, which counts as no answer (storage that fails for a moment).
        every_seconds: pause between two questions.
    """

    def __init__(self, ask: Callable[[], Request], every_seconds: float) -> None:
        self.answer = Request.NONE
        self._ask = ask
        self._every_seconds = every_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dcdist-watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(self._every_seconds):
            try:
                self.answer = max(self.answer, self._ask())
            except Exception:  # the next question may be answered
                continue

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join(timeout=10)


class SaveClock:
    """When the next checkpoint is due, by steps and by time."""

    def __init__(self, every_num_steps: int | None, every_seconds: float | None) -> None:
        self.every_num_steps = every_num_steps
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        by_steps = self.every_num_steps is not None and step % self.every_num_steps == 0
        by_time = self.every_seconds is not None and time.monotonic() - self.saved_at >= self.every_seconds
        return by_steps or by_time

    def saved(self) -> None:
        self.saved_at = time.monotonic()
