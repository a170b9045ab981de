"""The newest position in a small file: at each step on a local path, at commits behind a URL."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dcdist.metrics import heartbeat as heartbeat_module
from dcdist.metrics.heartbeat import Heartbeat, read_heartbeat
from dcdist.metrics.recorder import Recorder
from dcdist.storage import open_storage


def record(kind: str, step: int, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": "main", "epoch": 2, "step": step, "time": time.time(), **values}


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
