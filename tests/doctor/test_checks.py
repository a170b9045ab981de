"""Checks in bounded time, and the report that is made of them."""

from __future__ import annotations

import threading
import time

import pytest

from dcdist.doctor.check import Budget, Check, Problem, judge
from dcdist.doctor.report import Findings, has_failed, merge, summary
from tests.doctor.helpers import facts

# --- checks in bounded time -------------------------------------------------------------------------------------------


def test_a_check_that_raises_fails_in_one_line() -> None:
    def raising() -> Check:
        raise ValueError("first line\n  second line")

    check = Budget(10).guard("name", 1, raising, "mend it")
    assert check == Check("name", "FAIL", "ValueError: first line second line", "mend it")
    assert check.lines() == ["FAIL  name           ValueError: first line second line", f"{'':<21}remedy: mend it"]
    assert Check("name", "ok", "fine").lines("rank 1: ") == ["ok    name           rank 1: fine"]


def test_a_check_that_hangs_fails_in_time() -> None:
    budget, event = Budget(10), threading.Event()

    def hanging() -> Check:
        event.wait(60)
        return Check("name", "ok", "")

    began = time.monotonic()
    check = budget.guard("name", 0.2, hanging, "mend it")
    assert time.monotonic() - began < 5
    assert (check.state, check.finding) == ("FAIL", "did not end within 0 s")
    assert budget.has_left_behind()
    event.set()
    ends = time.monotonic() + 10
    while budget.has_left_behind():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_without_time_nothing_is_tried() -> None:
    budget = Budget(100)
    assert budget.guard("name", 50, lambda: Check("name", "ok", "fine"), "").finding == "fine"
    budget.shorten(0)
    check = budget.guard("name", 50, lambda: pytest.fail("was called"), "mend it")
    assert (check.state, check.finding) == ("FAIL", "was not tried: the checks before it took all the time")


def test_several_problems_are_one_check() -> None:
    problems = [Problem("warn", "slow", "a"), Problem("FAIL", "wrong", "b"), Problem("warn", "old", "a")]
    assert judge("name", "1 GB", problems) == Check("name", "FAIL", "slow; wrong; old; 1 GB", "a; b")
    assert judge("name", "1 GB", []) == Check("name", "ok", "1 GB")


# --- the report -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_elsewhere_is_added() -> None:
    fine, wrong = Check("a", "ok", "fine"), Check("a", "FAIL", "wrong", "mend")
    everywhere, odd = Check("b", "warn", "slow", "faster"), Check("b", "warn", "slower", "faster")
    processes = [
        Findings(facts(0), (fine, everywhere)),
        Findings(facts(1), (wrong, everywhere)),
        Findings(facts(2, host="b"), (wrong, everywhere)),
    ]
    assert merge(processes) == [fine, Check("a", "FAIL", "rank 1-2 on a, b: wrong", "mend"), everywhere]
    processes[0] = Findings(facts(0), (wrong, odd))
    assert merge(processes) == [
        wrong,
        Check("b", "warn", "rank 0 on a: slower", "faster"),
        Check("b", "warn", "rank 1-2 on a, b: slow", "faster"),
    ]
    assert has_failed([fine, wrong])
    assert not has_failed([fine, everywhere])
    assert summary([fine, wrong, odd], 3, 2, 1.26) == "1 ok, 1 warn, 1 FAIL on 3 processes of 2 machines, in 1.3 s"
