"""One record to every sink; a sink that fails is dropped and the others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import pytest

from dcdist.errors import Preempted
from dcdist.metrics.recorder import Recorder


class Kept:
    """A sink that keeps what it gets, and fails from the given number of records on."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.calls: list[str] = []
        self._fails_after = fails_after

    def write(self, record: Mapping[str, Any]) -> None:
        self.calls.append("write")
        if self._fails_after is not None and len(self.records) >= self._fails_after:
            raise OSError("No space left on device")
        self.records.append(record)

    def sync(self) -> None:
        self.calls.append("sync")

    def close(self) -> None:
        self.calls.append("close")


def test_a_record_has_its_coordinates_the_time_and_the_values() -> None:
    first, second = Kept(), Kept()
    before = time.time()
    Recorder([first, second]).record("step", "main", 3, 17, loss=0.5, losses={"cluster": 0.5})
    (record,) = first.records
    assert before <= record["time"] <= time.time()
    assert {**record, "time": 0} == {
        "kind": "step",
        "stage": "main",
        "epoch": 3,
        "step": 17,
        "time": 0,
        "loss": 0.5,
        "losses": {"cluster": 0.5},
    }
    assert second.records == first.records


def test_a_sink_that_fails_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    failing, good = Kept(fails_after=1), Kept()
    recorder = Recorder([failing, good])
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            recorder.record("step", "main", 0, step)
        recorder.sync()
        recorder.close()
    assert [record["step"] for record in good.records] == [0, 1, 2, 3]
    assert failing.calls == ["write", "write", "close"]
    assert good.calls[-2:] == ["sync", "close"]
    assert caplog.messages == ["Kept is left out from now on: OSError: No space left on device"]


def test_after_close_records_go_nowhere() -> None:
    sink = Kept()
    recorder = Recorder([sink])
    recorder.close()
    recorder.record("event", "main", 0, 0, event="late")
    assert sink.calls == ["close"]


def test_a_signal_that_arrives_while_a_sink_works_is_no_failure_of_the_sink() -> None:
    class Interrupted(Kept):
        def write(self, record: Mapping[str, Any]) -> None:
            super().write(record)
            raise Preempted("SIGTERM")

    sink = Interrupted()
    recorder = Recorder([sink])
    with pytest.raises(Preempted):
        recorder.record("event", "main", 0, 0, event="phase", phase="score")
    recorder.sync()
    assert sink.calls == ["write", "sync"]
