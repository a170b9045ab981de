"""The Parquet files of a run."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import torch

from dcdist.engine.artefacts import NEIGHBORS_SCHEMA, neighbors_table, to_parquet


def test_neighbours_are_lists_and_null_where_an_image_did_not_decode() -> None:
    table = neighbors_table(torch.tensor([[2, 3], [-1, -1], [0, 3], [2, 0]]))
    assert table.schema == NEIGHBORS_SCHEMA
    read = pq.read_table(io.BytesIO(to_parquet(table)))
    assert read["sample_id"].to_pylist() == [0, 1, 2, 3]
    assert read["neighbors"].to_pylist() == [[2, 3], None, [0, 3], [2, 0]]
