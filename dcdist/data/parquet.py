"""Rows of Parquet files: columns `image` (bytes) and, where there, `label`, `label_name`, `split` and `path`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdist.data.location import Location
from dcdist.data.types import NO_LABEL, ImageRow
from dcdist.errors import UsageError

_ROWS_AT_ONCE = 64
_TEXTS = ("label_name", "split", "path")


def parquet_rows(location: Location) -> Iterator[ImageRow]:
    """The rows of one Parquet file, or of the files of a folder in the order of their names.

    The key is `path`, or the number of the row among all where there is none.

    Raises:
        UsageError: not Parquet, no `image` column of bytes, a label that is not an integer from 0 (or null, or -1), a
            `label_name`, `split` or `path` that is not text.
    """
    row_number = 0
    for entry in location.files:
        with location.local_file(entry.name) as path:
            for row in _file_rows(path, location.path_of(entry.name)):
                yield row if row.key else row._replace(key=f"row-{row_number:09d}")
                row_number += 1


def _file_rows(path: Path, name: str) -> Iterator[ImageRow]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{name} is not a Parquet file: {error}") from error
    with file:
        schema = file.schema_arrow
        _check_schema(schema, name)
        columns = [c for c in ("image", "label", *_TEXTS) if c in schema.names]
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                yield _image_row(row, name)


def _check_schema(schema: pa.Schema, name: str) -> None:
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if "image" not in schema.names:
        raise UsageError(f"{name} has no column `image` with the bytes of the images; its columns are {found}")
    image = schema.field("image").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise UsageError(f"{name}: the column `image` must hold bytes (binary), its type is {image}")
    if "label" in schema.names:
        label = schema.field("label").type
        if not (pa.types.is_integer(label) or pa.types.is_null(label)):
            raise UsageError(f"{name}: the column `label` must hold integers, its type is {label}")
    elif "label_name" in schema.names:
        raise UsageError(f"{name} has a column `label_name` but no column `label` with the number; it has {found}")
    for column in _TEXTS:
        if column in schema.names and not _holds_text(schema.field(column).type):
            found = schema.field(column).type
            raise UsageError(f"{name}: the column `{column}` must hold text (string), its type is {found}")


def _holds_text(kind: pa.DataType) -> bool:
    """As text, as numbers of a dictionary of texts (pandas' categories), or never (a column of nulls)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _image_row(row: dict[str, Any], name: str) -> ImageRow:
    label = row.get("label")
    if label is not None and not NO_LABEL <= label < 2**31:
        raise UsageError(f"{name}: label {label} of image {row.get('path')!r}; labels are 0, 1, ..., or null for none")
    return ImageRow(
        key=row.get("path") or "",
        image=row["image"] or b"",
        label=None if label == NO_LABEL else label,
        label_name=row.get("label_name"),
        split=row.get("split"),
    )
