"""The Parquet files of a run: the images' keys, the clusters of every clustering, mined neighbours.

Shapes: N samples, k neighbours.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dcdist.clustering.types import Clustering
from dcdist.data.source import ImageSource

KEYS_SCHEMA = pa.schema([("sample_id", pa.int64()), ("key", pa.string()), ("label", pa.int32())])
ASSIGNMENTS_SCHEMA = pa.schema(
    [("sample_id", pa.int64()), ("head", pa.int16()), ("cluster", pa.int32()), ("distance", pa.float32())]
)

NEIGHBORS_SCHEMA = pa.schema([("sample_id", pa.int64()), ("neighbors", pa.list_(pa.int64()))])


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file (storage gets bytes: pyarrow's threads never see a Python file)."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def keys_table(source: ImageSource) -> pa.Table:
    """Which image each sample_id is; labels null where there are none."""
    labels = np.full(len(source), -1, np.int32) if source.labels is None else source.labels
    columns = [
        pa.array(np.arange(len(source), dtype=np.int64)),
        pa.array(source.keys, pa.string()),
        pa.array(labels, pa.int32(), mask=labels < 0),
    ]
    return pa.table(columns, schema=KEYS_SCHEMA)


def assignments_table(clustering: Clustering) -> pa.Table:
    """A row per head and sample; cluster -1 and distance nan where an image did not decode."""
    tables = []
    for number, head in enumerate(clustering.heads):
        num_samples = len(head.assignments)
        columns = [
            pa.array(np.arange(num_samples, dtype=np.int64)),
            pa.array(np.full(num_samples, number, np.int16)),
            pa.array(head.assignments.numpy()),
            pa.array(head.distances.numpy()),
        ]
        tables.append(pa.table(columns, schema=ASSIGNMENTS_SCHEMA))
    return pa.concat_tables(tables)


def neighbors_table(neighbors: torch.Tensor) -> pa.Table:
    """A row per sample, of its neighbours [N, k] nearest first; null where an image did not decode."""
    present = (neighbors[:, 0] >= 0).numpy()
    offsets = np.concatenate([[0], np.cumsum(present * neighbors.shape[1])]).astype(np.int32)
    values = pa.array(neighbors.numpy()[present].ravel())  # no Python object a neighbour
    lists = pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~present))
    columns = [pa.array(np.arange(len(neighbors), dtype=np.int64)), lists]
    return pa.table(columns, schema=NEIGHBORS_SCHEMA)
