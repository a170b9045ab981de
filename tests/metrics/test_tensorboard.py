"""Event files, read by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcdist.metrics.tensorboard import TensorBoardSink
from dcdist.storage import LocalStorage, open_storage


def record(kind: str, step: int, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": "main", "epoch": 0, "step": step, "time": 100.0 + step, **values}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def write(folder: Path, attempt: int, *records: dict[str, Any]) -> None:
    sink = TensorBoardSink(LocalStorage(str(folder)), "tensorboard", attempt)
    for entry in records:
        sink.write(entry)
    sink.close()


def test_every_number_is_a_curve(tmp_path: Path) -> None:
    write(
        tmp_path,
        1,
        record("event", 0, event="phase", phase="features", count=3),
        record("clustering", 0, head=0, num_clusters=50, seconds={"features": 0.5}, placement="rank0"),
        record("clustering", 0, head=1, num_clusters=100),
        record("step", 10, loss=2.0, losses={"cluster": 2.0}, flag=True, learning_rate=float("nan")),
        record("step", 20, loss=1.0, losses={"cluster": 1.0}),
    )
    assert curves(tmp_path / "tensorboard") == {
        "main/clustering/num_clusters": [(0, 50.0)],
        "main/clustering/seconds/features": [(0, 0.5)],
        "main/clustering-1/num_clusters": [(0, 100.0)],
        "main/step/loss": [(10, 2.0), (20, 1.0)],
        "main/step/losses/cluster": [(10, 2.0), (20, 1.0)],
    }


def test_a_resumed_attempt_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    """The first went on to step 40, of which only what came up to step 20 was saved."""
    epoch = record("epoch", 20, loss=9.0)
    write(tmp_path, 1, record("step", 10, loss=1.0), record("step", 20, loss=2.0), epoch, record("step", 30, loss=3.0))
    write(tmp_path, 2, record("clustering", 20, head=0, objective=0.5), record("step", 30, loss=3.5))
    write(tmp_path, 3, record("step", 30, loss=3.75), record("step", 40, loss=4.0))
    assert curves(tmp_path / "tensorboard") == {
        "main/step/loss": [(10, 1.0), (20, 2.0), (30, 3.75), (40, 4.0)],
        "main/epoch/loss": [(20, 9.0)],
        "main/clustering/objective": [(20, 0.5)],
    }


def test_a_curve_is_readable_while_it_grows(tmp_path: Path) -> None:
    sink = TensorBoardSink(LocalStorage(str(tmp_path)), "tensorboard", 1)
    sink.write(record("step", 10, loss=1.0))
    assert curves(tmp_path / "tensorboard") == {"main/step/loss": [(10, 1.0)]}
    sink.close()


@pytest.mark.usefixtures("s3_server")
def test_on_s3_the_file_is_uploaded_at_sync(tmp_path: Path) -> None:
    storage = open_storage("s3://bucket/run")
    sink = TensorBoardSink(storage, "tensorboard", 1)
    sink.write(record("step", 10, loss=1.0))
    assert storage.list("tensorboard") == []
    sink.sync()
    sink.write(record("step", 20, loss=2.0))
    sink.close()
    (name,) = storage.list("tensorboard")
    storage.download(f"tensorboard/{name}", tmp_path / name)
    assert curves(tmp_path) == {"main/step/loss": [(10, 1.0), (20, 2.0)]}
