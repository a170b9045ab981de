"""Signals only set a flag; storage is asked in a thread; saves fall due by steps and by time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from dcdist.engine.preemption import Request, SaveClock, SignalFlag, Watch

INSTALL_AND_WAIT = """
import sys, time
from dcdist.engine.preemption import SignalFlag
assert not {"torch", "numpy", "pyarrow"} & set(sys.modules), "handlers are installed before heavy imports"
flag = SignalFlag().install()
print(flag.number, flush=True)
while flag.number is None:
    time.sleep(0.01)
print(flag.number.name, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGINT"])
def test_a_signal_sets_the_flag_and_the_process_goes_on(name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INSTALL_AND_WAIT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        process.send_signal(signal.Signals[name])
        assert process.stdout.read() == f"{name}\n"
        assert process.wait(timeout=30) == 0


def test_the_most_pressing_request_is_the_largest() -> None:
    assert sorted(Request) == [Request.NONE, Request.SAVE, Request.PREEMPT, Request.STOP, Request.YIELD]


def test_the_watch_asks_in_a_thread_and_keeps_the_most_pressing_answer() -> None:
    answers = [Request.NONE, Request.YIELD, Request.STOP, Request.NONE]
    asked, threads = threading.Event(), set()

    def ask() -> Request:
        threads.add(threading.get_ident())
        if not answers:
            asked.set()
            raise OSError("the storage fails for a moment")
        if len(answers) == 4:
            answers.pop(0)
            raise OSError("the storage fails for a moment")
        return answers.pop(0)

    watch = Watch(ask, every_seconds=0.001)
    assert asked.wait(timeout=30)
    watch.close()
    assert watch.answer is Request.YIELD
    assert threading.get_ident() not in threads
    assert len(threads) == 1


def test_a_closed_watch_asks_no_more() -> None:
    count = [0]
    first = threading.Event()

    def ask() -> Request:
        count[0] += 1
        first.set()
        return Request.NONE

    watch = Watch(ask, every_seconds=0.001)
    assert first.wait(timeout=30)
    watch.close()
    assert "dcdist-watch" not in {thread.name for thread in threading.enumerate()}
    before = count[0]
    assert not threading.Event().wait(0.02)
    assert count[0] == before


def test_saves_by_steps() -> None:
    clock = SaveClock(every_num_steps=3, every_seconds=None)
    assert [step for step in range(1, 10) if clock.is_due(step)] == [3, 6, 9]


def test_saves_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = SaveClock(every_num_steps=None, every_seconds=60.0)
    now[0] = 1059.9
    assert not clock.is_due(1)
    now[0] = 1060.0
    assert clock.is_due(2)
    clock.saved()
    assert not clock.is_due(3)
    now[0] = 1120.0
    assert clock.is_due(4)


def test_no_saves_where_none_are_asked_for() -> None:
    clock = SaveClock(None, None)
    assert not any(clock.is_due(step) for step in range(1, 100))


def test_only_the_signals_of_schedulers_and_people_are_taken() -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        flag = SignalFlag().install()
        taken = {number for number in before if signal.getsignal(number) != before[number]}
        assert taken == {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}
        os.kill(os.getpid(), signal.SIGUSR2)
        assert flag.number is signal.SIGUSR2
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, before[number])
