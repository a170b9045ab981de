"""Metrics files: strict JSON, attempts merged, half a line tolerated, the same on S3."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from dcdist.metrics.jsonl import JsonLinesSink, read_metrics
from dcdist.metrics.recorder import Recorder
from dcdist.storage import GrowingFile, LocalStorage, Storage, open_storage


def write(storage: Storage, attempt: int, *records: dict[str, Any]) -> None:
    sink = JsonLinesSink(GrowingFile(storage, f"metrics/{attempt:04d}.jsonl"))
    for record in records:
        sink.write(record)
    sink.close()


def step(number: int, loss: float, **values: Any) -> dict[str, Any]:
    return {"kind": "step", "stage": "main", "epoch": 0, "step": number, "time": 1.0, "loss": loss, **values}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_lines_are_strict_json(tmp_path: Path) -> None:
    record = step(1, math.nan, losses={"a": math.inf, "b": np.float32(0.5)}, count=np.int64(3), none=None, flag=True)
    write(LocalStorage(str(tmp_path)), 1, record)
    (line,) = (tmp_path / "metrics/0001.jsonl").read_text().splitlines()
    expected = {**record, "loss": None, "losses": {"a": None, "b": 0.5}, "count": 3}
    assert json.loads(line, parse_constant=refuse) == expected


def test_a_line_is_on_the_disk_when_write_returns(tmp_path: Path) -> None:
    sink = JsonLinesSink(GrowingFile(LocalStorage(str(tmp_path)), "metrics/0001.jsonl"))
    sink.write(step(1, 0.5))
    assert read_metrics(LocalStorage(str(tmp_path))) == [step(1, 0.5)]
    sink.close()


@contextlib.contextmanager
def full(path: Path, num_bytes_left: int) -> Iterator[None]:
    """Files of this process can grow to so many bytes more than this one has, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + num_bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_refuses_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage, path = LocalStorage(str(tmp_path)), tmp_path / "metrics/0001.jsonl"
    recorder = Recorder([JsonLinesSink(GrowingFile(storage, "metrics/0001.jsonl"))])
    recorder.record("step", "main", 0, 0)
    for begin in (1, 201):
        with full(path, num_bytes_left=10):  # half a line
            for number in range(begin, begin + 199):
                recorder.record("step", "main", 0, number)
            recorder.sync()
            assert len(read_metrics(storage)) == begin
        recorder.record("step", "main", 0, begin + 199)
        assert [record["step"] for record in read_metrics(storage)] == list(range(begin + 200))
        recorder.sync()
    recorder.close()
    written, stored = "metrics wait in memory for now: ", "metrics are not stored for now: "
    assert [message[:32] for message in caplog.messages] == [written, stored] * 2


def test_what_waits_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage, path = LocalStorage(str(tmp_path)), tmp_path / "metrics/0001.jsonl"
    recorder = Recorder([JsonLinesSink(GrowingFile(storage, "metrics/0001.jsonl"))])
    num_records = 3000
    with full(path, num_bytes_left=10):
        for number in range(num_records):
            recorder.record("step", "main", 0, number, text=1000 * "x")
    recorder.close()
    assert len(caplog.messages) == 1
    steps = [record["step"] for record in read_metrics(storage)]
    assert steps == list(range(len(steps)))
    assert 900 < len(steps) < 1000  # 1 MiB
    assert len(caplog.messages) == 1


def test_of_a_step_written_twice_the_later_attempt_holds(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    write(storage, 1, step(10, 1.0), step(20, 2.0), step(30, 3.0))
    write(storage, 2, step(20, 2.5), step(40, 4.0))
    assert read_metrics(storage) == [step(10, 1.0), step(30, 3.0), step(20, 2.5), step(40, 4.0)]


def test_heads_at_one_step_are_different_records_and_all_events_are_kept(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    at = {"stage": "main", "epoch": 0, "step": 5, "time": 1.0}
    earlier = [
        {"kind": "clustering", **at, "head": 0, "value": 1},
        {"kind": "clustering", **at, "head": 1, "value": 1},
        {"kind": "event", **at, "event": "phase", "phase": "features"},
        {"kind": "event", **at, "event": "phase", "phase": "reduce"},
    ]
    later = [
        {"kind": "clustering", **at, "head": 1, "value": 2},
        {"kind": "event", **at, "event": "phase", "phase": "reduce"},
        {"kind": "event", **at, "event": "checkpoint"},
    ]
    write(storage, 1, *earlier)
    write(storage, 2, *later)
    assert read_metrics(storage) == [earlier[0], *earlier[2:], *later]


def test_attempts_past_9999_come_last(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    write(storage, 10000, step(1, 2.0))
    write(storage, 9999, step(1, 1.0))
    assert read_metrics(storage) == [step(1, 2.0)]


def test_half_a_last_line_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = LocalStorage(str(tmp_path))
    write(storage, 1, step(10, 1.0))
    with (tmp_path / "metrics/0001.jsonl").open("a") as file:
        file.write('{"kind": "st')
    with caplog.at_level(logging.WARNING):
        assert read_metrics(storage) == [step(10, 1.0)]
    assert caplog.messages == []


def test_damaged_lines_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run's end must not fail on its history."""
    storage = LocalStorage(str(tmp_path))
    write(storage, 1, step(10, 1.0))
    with (tmp_path / "metrics/0001.jsonl").open("a") as file:
        file.write("[1]\n" + json.dumps(step(20, 2.0)) + '\n{"kind": "step"}\n')
    write(storage, 2, step(30, 3.0))
    with caplog.at_level(logging.WARNING):
        assert read_metrics(storage) == [step(10, 1.0), step(20, 2.0), step(30, 3.0)]
    (message,) = caplog.messages
    assert "metrics/0001.jsonl: 2 lines, the first 2, are damaged and left out." in message


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(LocalStorage(str(tmp_path))) == []


@pytest.mark.usefixtures("s3_server")
def test_on_s3_lines_are_stored_at_sync() -> None:
    storage = open_storage("s3://bucket/run")
    sink = JsonLinesSink(GrowingFile(storage, "metrics/0001.jsonl"))
    sink.write(step(1, 0.5))
    assert read_metrics(storage) == []
    sink.sync()
    assert read_metrics(storage) == [step(1, 0.5)]
    sink.close()


@pytest.mark.usefixtures("s3_server")
def test_a_sync_that_fails_is_a_warning_and_the_next_stores_all(caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage("s3://not-yet-there/run")
    sink = JsonLinesSink(GrowingFile(storage, "metrics/0001.jsonl"))
    sink.write(step(1, 0.5))
    with caplog.at_level(logging.WARNING):
        sink.sync()
    (message,) = caplog.messages
    assert message.startswith("metrics are not stored for now: ")
    fsspec.filesystem("s3").mkdir("not-yet-there")
    sink.sync()
    assert read_metrics(storage) == [step(1, 0.5)]
    sink.close()
