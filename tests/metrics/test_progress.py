"""What a person reads while a run goes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dcdist.metrics.progress import (
    PlainProgress,
    TerminalProgress,
    describe_record,
    format_duration,
    progress_sink,
)


def record(kind: str, step: int, time: float, epoch: int = 0, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": "main", "epoch": epoch, "step": step, "time": time, **values}


def step_record(step: int, time: float, epoch: int = 0) -> dict[str, Any]:
    return record("step", step, time, epoch, loss=1.2345, samples_per_second=99.6)


BEGIN = record("event", 100, 1000.0, event="stage_begin", num_epochs=4, until_step=200, samples_per_step=64)
CLUSTERING = record(
    "clustering",
    *(110, 1006.5, 1),
    head=0,
    num_clusters=50,
    objective=0.51234,
    size_entropy_ratio=0.98,
    size_max_ratio=0.05,
    num_empty_repaired=1,
    changed_ratio=0.25,
    nmi_previous=0.8,
)
EPOCH = record(
    "epoch",
    *(120, 1008.0, 1),
    loss=1.5,
    heldout_loss=1.75,
    samples_per_second=80.0,
    data_wait_ratio=0.031,
    seconds={"train": 60.0, "cluster": 5.2},
)


def plain_lines(*records: dict[str, Any]) -> list[str]:
    output = io.StringIO()
    sink = progress_sink(Console(file=output, width=40))
    assert isinstance(sink, PlainProgress)
    for entry in records:
        sink.write(entry)
    return output.getvalue().splitlines()


def test_plain_lines() -> None:
    phase = record("event", 100, 1000.0, event="phase", phase="train")
    start = {**record("event", 0, 999.0, event="start", attempt=2, began_from="step-00000100-train.1"), "stage": ""}
    undecodable = record("event", 120, 1008.0, 1, event="undecodable", count=1, message="1 of 9 images [a.png]")
    lines = plain_lines(start, BEGIN, phase, step_record(110, 1005.0), CLUSTERING, EPOCH, undecodable)
    assert lines == [
        "attempt 2 goes on from step-00000100-train.1",
        "step 110: main epoch 1/4, train, loss 1.234, 100 samples/s, 45 s left",  # 10 of 100 steps in 5 s
        "main epoch 2, clusters: K 50, objective 0.5123, size entropy 0.980, largest 5.0%, refilled 1, changed 0.250, "
        "NMI previous 0.800",
        "main epoch 2 done: loss 1.5000, held-out 1.7500, 80 samples/s, 3.1% waiting for data, 1:05",
        "main epoch 2: 1 of 9 images [a.png]",
    ]


def test_steps_come_every_few_seconds_at_most() -> None:
    lines = plain_lines(*(step_record(number, 1000.0 + number) for number in range(1, 13)))
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 6", "step 11"]


def test_evaluation_figures() -> None:
    (line,) = plain_lines(record("evaluation", 120, 1008.0, 1, nmi=0.91234, knn=0.99, num_clusters=10))
    assert line == "main epoch 2, evaluation: nmi 0.9123, knn 0.9900"


def test_a_terminal_gets_a_bar_with_lines_above_it() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    sink = progress_sink(console)
    assert isinstance(sink, TerminalProgress)
    for entry in (BEGIN, step_record(110, 1005.0), EPOCH):
        sink.write(entry)
    sink.close()
    text = output.getvalue()
    assert "main epoch 2 done: loss 1.5000, held-out 1.7500" in text
    assert "120/200 main epoch 2/4" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and back again


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (185, "3:05"), (7385, "2:03:05")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"event": "start", "attempt": 1, "began_from": None}, "attempt 1 begins"),
        (
            {"event": "start", "attempt": 2, "began_from": "step-00000009-train.0001"},
            "attempt 2 goes on from step-00000009-train.0001",
        ),
        (
            {"event": "stage_done", "num_clusters": 10, "size_entropy_ratio": 0.9876, "size_max_ratio": 0.1234},
            "deepcluster done: 10 final clusters, size entropy 0.988, largest 12.3%",
        ),
    ],
)
def test_lines_of_events(values: dict[str, object], line: str) -> None:
    record = {"kind": "event", "stage": "deepcluster", "epoch": 50, "step": 750, "time": 0.0, **values}
    assert describe_record(record) == line
