"""The images of a data set of any kind, one after another; what packing, caching and `data info` read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcdist.data.image_folder import folder_rows
from dcdist.data.location import Location
from dcdist.data.packed import PackedSource
from dcdist.data.parquet import parquet_rows
from dcdist.data.tar import tar_rows
from dcdist.data.types import ImageRow


def image_rows(location: Location, split: str | None = None) -> Iterator[ImageRow]:
    """All rows, of every split, in the order that gives the sample_ids, with keys that occur once.

    Args:
        location: Local, or remote of any kind but packed (which is copied, see cache.py).
        split: Makes a folder of this name count as one of a split; no row is left out.

    Raises:
        UsageError: what the readers of the kinds refuse.
    """
    if location.kind == "packed":
        assert location.is_local
        rows = PackedSource(Path(location.path)).rows()
    elif location.kind == "parquet":
        rows = parquet_rows(location)
    elif location.kind == "tar":
        rows = tar_rows(location, split)
    else:
        rows = folder_rows(location, split)
    return _unique_keys(rows)


def _unique_keys(rows: Iterator[ImageRow]) -> Iterator[ImageRow]:
    """Appends #2, #3, ... to keys that came before: names without folders, a file twice in a tar."""
    seen: set[str] = set()
    repeats: dict[str, int] = {}
    for row in rows:
        key = row.key
        while key in seen:
            repeats[row.key] = repeats.get(row.key, 1) + 1
            key = f"{row.key}#{repeats[row.key]}"
        seen.add(key)
        yield row._replace(key=key)
