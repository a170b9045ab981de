"""Clusterings as a run wrote them: which there are, their sizes, and the one that the report shows images of.

Shapes: N samples, K clusters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdist.report.history import History
from dcdist.run_directory import KEYS
from dcdist.storage import Storage

ASSIGNMENTS = "assignments"
_FILE = re.compile(r"(.+)-(\d+|final)\.parquet")
_NO_LABEL = -1
MOST_CLUSTERS = 10**8  # a larger id is damage
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)  # what reading a damaged Parquet file raises


@dataclass(frozen=True)
class ClusteringFile:
    """assignments/STAGE-EPOCH.parquet; `epoch` is None of a stage's final clustering."""

    stage: str
    epoch: int | None
    path: str

    def words(self) -> str:
        if self.epoch is None:
            return f"the final clustering of stage {self.stage}"
        return f"the clustering of stage {self.stage} {after(self.epoch)}"


def after(epochs: int) -> str:
    """When a clustering was made, in words."""
    if epochs == 0:
        return "before the first epoch"
    return f"after {epochs} epoch{'s' * (epochs != 1)}"


@dataclass(frozen=True)
class Assignments:
    """One head's clusters. Where an image has none, -1 and nan."""

    clusters: NDArray[np.int64]  # [N]
    distances: NDArray[np.float64]  # [N]
    num_heads: int


@dataclass(frozen=True)
class Sizes:
    """How many images each cluster had, the largest first."""

    epoch: int | None
    sizes: NDArray[np.int64]  # [K], descending, empty ones included
    num_heads: int


def list_clusterings(storage: Storage, stages: Sequence[str]) -> list[ClusteringFile]:
    """All of a run: stages in the order given (unknown ones last), epochs ascending, a stage's final one last."""
    files = []
    for name in storage.list(ASSIGNMENTS):
        match = _FILE.fullmatch(name)
        if match:
            epoch = None if match[2] == "final" else int(match[2])
            files.append(ClusteringFile(match[1], epoch, f"{ASSIGNMENTS}/{name}"))
    order = {stage: number for number, stage in enumerate(stages)}
    return sorted(
        files, key=lambda file: (order.get(file.stage, len(order)), file.stage, file.epoch is None, file.epoch or 0)
    )


def read_assignments(storage: Storage, path: str, head: int = 0) -> Assignments:
    """The clusters of a head.

    Raises:
        one of UNREADABLE: the file is damaged, or has no row of this head.
    """
    table = _read(storage, path, ("sample_id", "head", "cluster", "distance"))
    heads = table["head"].to_numpy()
    rows = table.filter(pa.array(heads == head))
    sample_ids = rows["sample_id"].to_numpy()
    if not len(sample_ids) or sample_ids.min() < 0 or sample_ids.max() >= len(sample_ids):
        raise ValueError(f"{storage.url(path)} has no images of head {head}, or not all of them")
    clusters = np.full(len(sample_ids), -1, np.int64)
    distances = np.full(len(clusters), np.nan)
    clusters[sample_ids] = rows["cluster"].to_numpy()
    distances[sample_ids] = rows["distance"].to_numpy()
    if clusters.max() >= MOST_CLUSTERS:
        raise ValueError(f"{storage.url(path)} has a cluster {clusters.max()}")
    return Assignments(clusters, distances, len(np.unique(heads)))


def read_sizes(storage: Storage, file: ClusteringFile, num_clusters: int | None) -> Sizes:
    """The sizes of the clusters of head 0.

    Args:
        storage: of the run.
        file: which clustering.
        num_clusters: K; None: up to the largest id that occurs.

    Raises:
        one of UNREADABLE: the file is damaged, or no image has a cluster.
    """
    table = _read(storage, file.path, ("head", "cluster"))
    heads, clusters = table["head"].to_numpy(), table["cluster"].to_numpy()
    own = clusters[(heads == 0) & (clusters >= 0)]
    if not len(own) or own.max() >= MOST_CLUSTERS:
        raise ValueError(f"{storage.url(file.path)}: no image of head 0 has a cluster, or ids are too large")
    sizes = np.bincount(own, minlength=num_clusters or 0).astype(np.int64)
    return Sizes(file.epoch, np.sort(sizes)[::-1], len(np.unique(heads)))


def recorded_num_clusters(history: History, file: ClusteringFile) -> int | None:
    """K of head 0 as the run recorded it, which counts clusters that hold nothing."""
    found = None
    if file.epoch is None:
        records = [record for record in history.of_kind("event", file.stage) if record.get("event") == "stage_done"]
    else:
        clusterings = history.of_kind("clustering", file.stage)
        records = [record for record in clusterings if record["head"] == 0 and record["epoch"] == file.epoch]
    for record in records:
        number = record.get("num_clusters")
        found = number if isinstance(number, int) and 0 < number < MOST_CLUSTERS else found
    return found


def read_labels(storage: Storage, num_samples: int) -> NDArray[np.int64] | None:
    """The labels [N] of keys.parquet, -1 without one; None where no image has one.

    Raises:
        one of UNREADABLE: the file is missing, damaged, or of another number of images.
    """
    labels = _read(storage, KEYS, ("label",))["label"]
    if len(labels) != num_samples:
        raise ValueError(f"{storage.url(KEYS)} has {len(labels)} images, the clustering {num_samples}")
    if labels.null_count == len(labels):
        return None
    filled: NDArray[np.int64] = pc.fill_null(labels, _NO_LABEL).to_numpy().astype(np.int64)
    return filled


def read_keys(storage: Storage, sample_ids: Sequence[int]) -> dict[int, str]:
    """Names of some images; empty where they cannot be read."""
    try:
        table = _read(storage, KEYS, ("sample_id", "key"))
        chosen = table.filter(pc.is_in(table["sample_id"], value_set=pa.array(sample_ids, pa.int64())))
        return {row["sample_id"]: str(row["key"]) for row in chosen.to_pylist()}
    except UNREADABLE:
        return {}


def _read(storage: Storage, path: str, columns: tuple[str, ...]) -> pa.Table:
    """Columns of a Parquet file: bytes, for pyarrow's threads never see a Python file; a local one by its name."""
    local = storage.local_path(path)
    source = pa.BufferReader(storage.read_bytes(path)) if local is None else str(local)
    table = pq.ParquetFile(source, memory_map=local is not None).read(list(columns))
    missing = set(columns) - set(table.column_names)
    if missing:
        raise KeyError(f"{storage.url(path)} has no column {', '.join(sorted(missing))}")
    return table
