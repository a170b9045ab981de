"""The places where a run may end early: ranks agree there, so that all act on the same step."""

from __future__ import annotations

import signal
from collections.abc import Callable

from dcdist.distributed.collectives import Collectives
from dcdist.engine.preemption import Request, SaveClock, SignalFlag, Watch
from dcdist.errors import Preempted, StopRequested, Superseded

_SIGNALS = 128  # more than there are: a request and a signal travel as one number


class Boundary:
    """What the ranks agree to do at a boundary.

    Args:
        collectives: the ranks; agreeing is one small all-reduce.
        signals: this process's signals.
        clock: when a checkpoint is due; rank 0's counts.
        watch: on rank 0, answers for the run directory (stop requests, newer attempts).
        passed: called at every boundary that all ranks have come to.
    """

    def __init__(
        self,
        collectives: Collectives,
        signals: SignalFlag,
        clock: SaveClock,
        watch: Watch | None,
        passed: Callable[[], None] = lambda: None,
    ) -> None:
        self._passed = passed
        self._collectives = collectives
        self._signals = signals
        self._clock = clock
        self._watch = watch
        self._preempting = ""  # the signal that some rank has got

    def agree(self, step: int | None = None) -> Request:
        """The largest request of any rank. Collective. Saves are due at steps only."""
        request = Request.PREEMPT if self._signals.number else Request.NONE
        if self._watch:
            request = max(request, self._watch.answer)
        if self._collectives.is_main and step is not None and request is Request.NONE and self._clock.is_due(step):
            request = Request.SAVE
        number = self._signals.number if request is Request.PREEMPT and self._signals.number else 0
        largest, number = divmod(self._collectives.largest(request * _SIGNALS + number), _SIGNALS)
        self._passed()
        if number:
            self._preempting = signal.Signals(number).name
        return Request(largest)

    def between_steps(self) -> None:
        """A boundary where nothing needs saving (a batch of features, a k-means iteration). Collective.

        Raises:
            Preempted, StopRequested: somebody asked for it; the newest checkpoint repeats the phase identically.
        """
        self.leave(self.agree())

    def at_step(self, step: int, save: Callable[[], None]) -> None:
        """A boundary after a training step, which a checkpoint can hold. Collective.

        Raises:
            Preempted, StopRequested: as asked, after `save`.
        """
        request = self.agree(step)
        if request in (Request.SAVE, Request.PREEMPT, Request.STOP):
            save()
        self.leave(request)

    def leave(self, request: Request) -> None:
        """Raises what the request stands for, if it ends the run."""
        if request is Request.PREEMPT:
            raise Preempted(self._preempting)
        if request is Request.STOP:
            raise StopRequested("a stop was requested")
        if request is Request.YIELD:
            raise Superseded("a newer attempt of this run has started and owns the run directory now")
