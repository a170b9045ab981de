"""Folders of runs as training leaves them, small and with figures that a test can know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dcdist.data.source import open_source

BEGAN = 1_700_000_000.0  # unix seconds of the first attempt
SECTIONS = ("overview", "training", "clustering", "sizes", "images", "classes", "evaluation", "time", "config")


def instant(seconds: float) -> str:
    """Seconds after BEGAN, as attempts hold them."""
    return datetime.fromtimestamp(BEGAN + seconds, UTC).isoformat(timespec="seconds")


def record(kind: str, epoch: int, step: int, at: float, stage: str = "clusters", **values: Any) -> dict[str, Any]:
    """A metric record; `at` is in seconds after BEGAN."""
    return {"kind": kind, "stage": stage, "epoch": epoch, "step": step, "time": BEGAN + at, **values}


def write_attempt(
    folder: Path,
    number: int,
    began: float,
    ended: tuple[float, int, str] | None,
    records: Sequence[Mapping[str, Any]],
    **description: Any,
) -> None:
    """attempts/NNNN.json and metrics/NNNN.jsonl; `ended` is (seconds after BEGAN, exit code, reason)."""
    content: dict[str, Any] = {"attempt": number, "num_processes": 2, "began": instant(began), **description}
    if ended is not None:
        when, code, reason = ended
        end = {"when": instant(when), "exit_code": code, "reason": reason, "signal": None, "last_commit": None}
        content["ended"] = end
    write(folder / "attempts" / f"{number:04d}.json", json.dumps(content))
    write(folder / "metrics" / f"{number:04d}.jsonl", "".join(json.dumps(line) + "\n" for line in records))


def write(path: Path, text: str) -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_assignments(path: Path, heads: Sequence[Sequence[int]], distances: Sequence[float] | None = None) -> None:
    """assignments/STAGE-EPOCH.parquet: the clusters of each head."""
    tables = []
    for head, clusters in enumerate(heads):
        number = len(clusters)
        columns = {
            "sample_id": pa.array(np.arange(number), pa.int64()),
            "head": pa.array(np.full(number, head), pa.int16()),
            "cluster": pa.array(np.asarray(clusters), pa.int32()),
            "distance": pa.array(np.linspace(0, 1, number) if distances is None else distances, pa.float32()),
        }
        tables.append(pa.table(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), path)


def write_keys(folder: Path, labels: Sequence[int | None], keys: Sequence[str] | None = None) -> None:
    """keys.parquet."""
    number = len(labels)
    columns = {
        "sample_id": pa.array(np.arange(number), pa.int64()),
        "key": pa.array(keys or [f"image-{n}.png" for n in range(number)], pa.string()),
        "label": pa.array(labels, pa.int32()),
    }
    pq.write_table(pa.table(columns), folder / "keys.parquet")


def make_run(
    folder: Path,
    num_images: int = 60,
    num_clusters: int = 4,
    num_epochs: int = 3,
    stages: Sequence[str] = ("clusters",),
    labels: bool = True,
    heldout: bool = True,
    final: bool = True,
    num_heads: int = 1,
    images: Path | None = None,
) -> Path:
    """A finished run of one attempt: ten steps an epoch, a clustering an epoch, a step record every five steps.

    With a folder of `images` it is one that was trained on these.
    """
    trained_on: dict[str, Any] = {"num_images": num_images, "fingerprint": "unknown"}
    if images is not None:
        source = open_source(images)
        num_images = len(source)
        trained_on = {"num_images": num_images, "fingerprint": source.fingerprint()}
    folder.mkdir(parents=True)
    config = {"method": "deepcluster", "data": {"root": str(images or "nowhere")}, "train": {"num_epochs": num_epochs}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if images is not None and labels:
        assert source.labels is not None
        write_keys(folder, source.labels.tolist(), list(source.keys))
    else:
        write_keys(folder, [n % 3 if labels else None for n in range(num_images)])
    records: list[dict[str, Any]] = [record("event", 0, 0, 1, stages[0], event="start", attempt=1)]
    seconds, step = 1.0, 0
    for stage in stages:
        until = step + 10 * num_epochs
        begin = {"event": "stage_begin", "num_epochs": num_epochs, "until_step": until}
        records.append(record("event", 0, step, seconds, stage, **begin))
        for epoch in range(num_epochs):
            records += _epoch(stage, epoch, step, seconds, num_clusters, num_heads, labels, heldout)
            clusters = [(np.arange(num_images) + epoch) % num_clusters for _ in range(num_heads)]
            write_assignments(folder / "assignments" / f"{stage}-{epoch}.parquet", clusters)
            step, seconds = step + 10, seconds + 10
        if final:
            write_assignments(folder / "assignments" / f"{stage}-final.parquet", [np.arange(num_images) % 3])
            done = {"event": "stage_done", "num_clusters": 3}
            records.append(record("event", num_epochs, step, seconds, stage, **done))
    write_attempt(folder, 1, 0, (seconds + 1, 0, "done"), records, data=trained_on)
    return folder


def _epoch(
    stage: str, epoch: int, step: int, seconds: float, num_clusters: int, num_heads: int, labels: bool, heldout: bool
) -> list[dict[str, Any]]:
    records = [record("event", epoch, step, seconds, stage, event="phase", phase="features")]
    records.append(record("event", epoch, step, seconds + 2, stage, event="phase", phase="cluster"))
    for head in range(num_heads):
        values = {"num_clusters": num_clusters, "objective": 0.8 - 0.1 * epoch, "iterations": 5, "seconds": {}}
        values |= {"size_entropy_ratio": 0.9, "size_max_ratio": 0.3, "imbalance_factor": 1.1}
        if epoch:
            values |= {"nmi_previous": 0.5 + 0.1 * epoch, "changed_ratio": 0.4 - 0.1 * epoch}
        if labels:
            values["nmi_targets"] = 0.1 * (epoch + 1)
        records.append(record("clustering", epoch, step, seconds + 3, stage, head=head, **values))
    records.append(record("event", epoch, step, seconds + 3, stage, event="phase", phase="train"))
    for done in (5, 10):
        loss = 2.0 - 0.5 * epoch - 0.01 * done
        values = {"loss": loss, "losses": {"clusters": loss}, "learning_rate": 0.1, "samples_per_second": 100.0}
        records.append(record("step", epoch, step + done, seconds + 3 + 0.6 * done, stage, **values))
    values = {"loss": 2.0 - 0.5 * epoch, "samples_per_second": 100.0 + epoch, "learning_rate": 0.1}
    values |= {"seconds": {"features": 2.0, "cluster": 1.0, "train": 6.0}, **({"heldout_loss": 1.5} if heldout else {})}
    records.append(record("epoch", epoch, step + 10, seconds + 9, stage, **values))
    return records
