"""The newest position in a small file: at each step on a local path, at commits behind a URL."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcdist.filesystems import StorageError
from dcdist.metrics import heartbeat as heartbeat_module
from dcdist.metrics.heartbeat import Heartbeat, read_heartbeat
from dcdist.metrics.recorder import Recorder
from dcdist.storage import open_storage


def record(kind: str, step: int, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": "main", "epoch": 2, "step": step, "time": time.time(), **values}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_step_is_in_the_file_at_once(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    heartbeat = Heartbeat(storage, "0001.heartbeat")
    assert "step" not in read_heartbeat(storage, "0001.heartbeat")
    heartbeat.write(record("event", 5, event="stage_begin", num_epochs=9, until_step=90, samples_per_step=32))
    heartbeat.write(record("step", 6, loss=1.5, losses={"cluster": 1.5}, samples_per_second=10.0, learning_rate=0.1))
    heartbeat.step_done(3, 7, 0.5)
    found = read_heartbeat(storage, "0001.heartbeat")
    assert found.pop("time") >= found.pop("progressed")
    assert found == {
        "stage": "main",
        "epoch": 3,
        "step": 7,
        "num_epochs": 9,
        "until_step": 90,
        "samples_per_step": 32,
        "loss": 1.5,
        "samples_per_second": 10.0,
    }
    heartbeat.close()
    heartbeat.close()


def test_it_beats_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "EVERY_SECONDS", 0.02)
    storage = open_storage(tmp_path)
    heartbeat = Heartbeat(storage, "0001.heartbeat")
    heartbeat.step_done(0, 1, 0.5)
    first = read_heartbeat(storage, "0001.heartbeat")
    deadline = time.monotonic() + 10
    while (later := read_heartbeat(storage, "0001.heartbeat"))["time"] <= first["time"] + 0.1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert later["progressed"] == first["progressed"]
    heartbeat.close()


def test_behind_a_url_it_is_stored_at_commits() -> None:
    storage = open_storage("memory://run")
    heartbeat = Heartbeat(storage, "0001.heartbeat")
    heartbeat.step_done(0, 8, 0.5)
    assert read_heartbeat(storage, "0001.heartbeat") == {}
    heartbeat.sync()
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 8
    heartbeat.step_done(0, 9, 0.5)
    heartbeat.close()
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 9


def test_a_disk_that_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat_module, "EVERY_SECONDS", 0.02)
    storage = open_storage(tmp_path)
    recorder = Recorder([Heartbeat(storage, "0001.heartbeat")])
    calls: list[str] = []

    def fail(*_: object) -> None:
        calls.append(threading.current_thread().name)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", fail)
        broken.setattr(os, "fdatasync", fail)
        for number in range(3):
            recorder.step_done("main", 0, number, 0.5)
        recorder.record("step", "main", 0, 3, loss=1.0, samples_per_second=1.0)
        wait_until(lambda: calls.count("dcdist-heartbeat") > 6)
    assert sorted(caplog.messages) == [
        "the heartbeat is not stored for now: [Errno 5] Input/output error",
        "the heartbeat is not written for now: [Errno 5] Input/output error",
    ]
    wait_until(lambda: read_heartbeat(storage, "0001.heartbeat").get("step") == 3)  # by the next beat
    recorder.step_done("main", 0, 4, 0.5)
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 4
    recorder.close()
    assert len(caplog.messages) == 2


def test_a_server_that_fails_for_a_while(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage("memory://failing")
    heartbeat = Heartbeat(storage, "0001.heartbeat")
    heartbeat.step_done(0, 8, 0.5)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write_bytes", lambda *_: (_ for _ in ()).throw(StorageError("no answer")))
        heartbeat.sync()
        heartbeat.sync()
    assert caplog.messages == ["the heartbeat is not stored for now: no answer"]
    heartbeat.sync()
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 8
    heartbeat.close()


def test_each_beat_reaches_the_server_and_no_step_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "EVERY_SECONDS", 0.02)
    storage = open_storage(tmp_path)
    threads: list[str] = []
    answered = threading.Event()

    def slow(_: int) -> None:
        threads.append(threading.current_thread().name)
        assert answered.wait(30)

    monkeypatch.setattr(os, "fdatasync", slow)
    heartbeat = Heartbeat(storage, "0001.heartbeat")
    wait_until(lambda: len(threads) == 1)
    heartbeat.step_done(0, 1, 0.5)  # while the server does not answer
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 1
    answered.set()
    wait_until(lambda: len(threads) > 2)
    heartbeat.close()
    assert set(threads) == {"dcdist-heartbeat"}


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    heartbeat = Heartbeat(open_storage(tmp_path), "0001.heartbeat")
    heartbeat.write(record("step", 6, loss=math.nan, samples_per_second=math.inf))
    heartbeat.close()
    text = (tmp_path / "0001.heartbeat").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["loss"] is None


def test_damaged_it_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "0001.heartbeat").write_text('{"step": 1')
    assert read_heartbeat(open_storage(tmp_path), "0001.heartbeat") == {}


def test_the_recorder_tells_of_every_step_and_times_the_first(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    heartbeat = Heartbeat(storage, "0001.heartbeat")
    records: list[dict[str, Any]] = []

    class Kept:
        def write(self, record: dict[str, Any]) -> None:
            records.append(record)

        def sync(self) -> None: ...

        def close(self) -> None: ...

    recorder = Recorder([heartbeat, Kept()], started_at=time.time() - 100)
    recorder.step_done("main", 0, 41, 0.5)
    recorder.step_done("main", 0, 42, 0.5)
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 42
    (first,) = records
    assert (first["event"], first["step"]) == ("first_step", 41)
    assert first["seconds_from_start"] == pytest.approx(100, abs=5)
    recorder.close()
    recorder.step_done("main", 0, 43, 0.5)
    assert read_heartbeat(storage, "0001.heartbeat")["step"] == 42


def test_a_sign_of_progress_is_in_the_next_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "EVERY_SECONDS", 0.02)
    storage = open_storage(tmp_path)
    recorder = Recorder([Heartbeat(storage, "0001.heartbeat")])
    passed_at = time.time()
    recorder.progressed()
    deadline = time.monotonic() + 10
    while read_heartbeat(storage, "0001.heartbeat").get("progressed", 0.0) < passed_at:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    recorder.close()
