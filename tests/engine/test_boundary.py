"""What ranks agree on at a boundary, and that all act alike on the same step."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from dcdist.distributed.collectives import Collectives
from dcdist.engine.boundary import Boundary
from dcdist.engine.preemption import Request, SaveClock, SignalFlag, Watch
from dcdist.errors import ExitCode, Preempted, StopRequested
from tests.distributed.processes import run_processes


class Answered:
    """A watch that has had its answer."""

    def __init__(self, answer: Request) -> None:
        self.answer = answer


def boundary(
    collectives: Collectives, signal_name: str | None, answer: Request, every_num_steps: int | None = None
) -> Boundary:
    signals = SignalFlag()
    signals.number = signal.Signals[signal_name] if signal_name else None
    watch: Any = Answered(answer)
    return Boundary(collectives, signals, SaveClock(every_num_steps, None), watch if collectives.is_main else None)


def outcome(at: Boundary, step: int | None) -> tuple[str, int, int | None]:
    """What was raised, how often was saved, the exit code."""
    saves: list[int] = []
    try:
        if step is None:
            at.between_steps()
        else:
            at.at_step(step, lambda: saves.append(step))
    except (Preempted, StopRequested) as error:
        return type(error).__name__, len(saves), int(error.exit_code)
    return "", len(saves), None


# signal, answer of the run directory -> at a step that no save is due at, at one that it is, between steps
TABLE: list[tuple[str | None, Request, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = [
    (None, Request.NONE, ("", 0, None), ("", 1, None), ("", 0, None)),
    ("SIGTERM", Request.NONE, ("Preempted", 1, 75), ("Preempted", 1, 75), ("Preempted", 0, 75)),
    (None, Request.STOP, ("StopRequested", 1, 3), ("StopRequested", 1, 3), ("StopRequested", 0, 3)),
    ("SIGTERM", Request.STOP, ("StopRequested", 1, 3), ("StopRequested", 1, 3), ("StopRequested", 0, 3)),
    (None, Request.YIELD, ("Superseded", 0, 3), ("Superseded", 0, 3), ("Superseded", 0, 3)),
    ("SIGUSR2", Request.YIELD, ("Superseded", 0, 3), ("Superseded", 0, 3), ("Superseded", 0, 3)),
]


@pytest.mark.parametrize(("signal_name", "answer", "not_due", "due", "between"), TABLE)
def test_what_a_boundary_does(
    signal_name: str | None, answer: Request, not_due: tuple[Any, ...], due: tuple[Any, ...], between: tuple[Any, ...]
) -> None:
    at = boundary(Collectives(), signal_name, answer, every_num_steps=2)
    assert outcome(at, 3) == not_due
    assert outcome(at, 4) == due
    assert outcome(at, None) == between


def test_every_boundary_that_all_have_come_to_is_a_sign_of_progress() -> None:
    passed: list[bool] = []
    at = Boundary(Collectives(), SignalFlag(), SaveClock(None, None), None, lambda: passed.append(True))
    at.between_steps()
    at.at_step(3, lambda: None)
    assert len(passed) == 2


def test_messages_name_the_signal_or_who_asked() -> None:
    with pytest.raises(Preempted, match="SIGUSR2 asked the run to make room"):
        boundary(Collectives(), "SIGUSR2", Request.NONE).between_steps()
    with pytest.raises(StopRequested, match="a stop was requested"):
        boundary(Collectives(), None, Request.STOP).between_steps()
    with pytest.raises(StopRequested, match="a newer attempt of this run has started"):
        boundary(Collectives(), None, Request.YIELD).between_steps()


def test_saves_fall_due_without_a_watch_too() -> None:
    at = Boundary(Collectives(), SignalFlag(), SaveClock(2, None), None)
    assert [outcome(at, step)[1] for step in range(1, 5)] == [0, 1, 0, 1]


def test_a_real_watch_is_heard() -> None:
    watch = Watch(lambda: Request.STOP, every_seconds=0.001)
    at = Boundary(Collectives(), SignalFlag(), SaveClock(None, None), watch)
    while watch.answer is not Request.STOP:
        time.sleep(0.001)
    with pytest.raises(StopRequested):
        at.between_steps()
    watch.close()


def agree_on_every_case(collectives: Collectives) -> list[tuple[str, int, int | None]]:
    """Signals come to one rank alone, answers and saves to rank 0; every rank has to act."""
    last = collectives.world_size - 1
    outcomes = []
    for signal_name, answer, *_ in TABLE:
        own_signal = signal_name if collectives.rank == last else None
        # The clock of the other ranks would be due at every step, if it were asked.
        at = boundary(collectives, own_signal, answer, every_num_steps=2 if collectives.is_main else 1)
        outcomes += [outcome(at, 3), outcome(at, 4), outcome(at, None)]
    return outcomes


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_ranks_act_alike_on_what_came_to_one(world_size: int) -> None:
    expected = [case for _, _, *cases in TABLE for case in cases]
    assert run_processes(agree_on_every_case, world_size) == [expected] * world_size


def test_exit_codes() -> None:
    assert Preempted.exit_code is ExitCode.RUN_AGAIN
    assert StopRequested.exit_code is ExitCode.STOPPED
