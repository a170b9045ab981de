"""A check's outcome, and what bounds the time of one and turns its errors into an outcome. No torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")
State = Literal["ok", "warn", "FAIL"]
STATES: tuple[State, ...] = ("ok", "warn", "FAIL")  # the worst last
_LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class Check:
    """One line of the report, and a second one with the remedy where there is something to mend."""

    name: str
    state: State
    finding: str
    remedy: str = ""

    def lines(self, where: str = "") -> list[str]:
        """For the terminal; `where` names the process that found it."""
        lines = [f"{self.state:<4}  {self.name:<13}  {where}{self.finding}"]
        return [*lines, f"{'':<21}remedy: {self.remedy}"] if self.remedy else lines


class Problem(NamedTuple):
    """One of the things that are wrong with what a check looked at."""

    state: State
    finding: str
    remedy: str


def judge(name: str, fine: str, problems: Sequence[Problem]) -> Check:
    """The check that found these problems, none of them: ok. `fine` is what else there is to say."""
    if not problems:
        return Check(name, "ok", fine)
    findings = [problem.finding for problem in problems] + ([fine] if fine else [])
    remedies = dict.fromkeys(problem.remedy for problem in problems)  # each once
    return Check(name, worst([problem.state for problem in problems]), "; ".join(findings), "; ".join(remedies))


def worst(states: Sequence[State]) -> State:
    """Of these states."""
    return max(states, key=STATES.index, default="ok")


def one_line(error: BaseException) -> str:
    """An error's name and message without line breaks, cut where it is long."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."


class DidNotEndError(Exception):
    """Something took longer than it may."""


class Budget:
    """The time that is left for everything, and the threads that did not end in theirs."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._left_behind: list[threading.Thread] = []

    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self._ends - time.monotonic())

    def shorten(self, seconds: float) -> None:
        """Leaves at most so many seconds from now."""
        self._ends = min(self._ends, time.monotonic() + seconds)

    def call(self, seconds: float, function: Callable[[], T]) -> T:
        """The function's value or error; it runs in a thread of its own, which is left behind when the time is over.

        Raises:
            DidNotEndError: it ran longer than these seconds, or than the time that is left.
        """
        seconds = min(seconds, self.left())
        if seconds <= 0:
            raise DidNotEndError("was not tried: the checks before it took all the time")
        outcome: list[tuple[Any, BaseException | None]] = []

        def run() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=run, name="dcdist-doctor", daemon=True)
        thread.start()
        thread.join(seconds)
        if not outcome:
            self._left_behind.append(thread)
            raise DidNotEndError(f"did not end within {seconds:.0f} s")
        value, error = outcome[0]
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def guard(self, name: str, seconds: float, function: Callable[[], Check], remedy: str) -> Check:
        """The check's outcome; one that raises or does not end has failed, with this remedy."""
        try:
            return self.call(seconds, function)
        except DidNotEndError as error:
            return Check(name, "FAIL", str(error), remedy)
        except Exception as error:
            return Check(name, "FAIL", one_line(error), remedy)

    def has_left_behind(self) -> bool:
        """Whether a thread still runs that did not end in time: the process must not wait for it."""
        return any(thread.is_alive() for thread in self._left_behind)
