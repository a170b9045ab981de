"""Packed shards: uncompressed Arrow IPC files, read through memory maps, and the manifest that completes them.

Columns of a shard: key (string), image (bytes as encoded), label (int32 or null), split (string or null).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdist.data.image_folder import rows_of_split
from dcdist.data.location import MANIFEST_NAME
from dcdist.data.types import NO_LABEL, ImageRow, ImageSource, Keys
from dcdist.errors import RunError, UsageError

FORMAT_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest names it."""

    name: str
    num_rows: int
    num_bytes: int  # of the file


@dataclass(frozen=True)
class Manifest:
    """What a folder of packed shards holds; a folder without it is not complete."""

    shards: tuple[ShardEntry, ...]
    label_names: list[str] | None
    split_counts: dict[str, int]
    format_version: int = FORMAT_VERSION

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    def to_json(self) -> bytes:
        return (json.dumps({"num_rows": self.num_rows, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes, name: str) -> Manifest:
        """Raises UsageError where the text is no manifest of this format version; `name` says where it is from."""
        try:
            values = json.loads(text)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise UsageError(
                    f"{name} has format version {version}, this dcdist reads {FORMAT_VERSION}: pack the images again"
                )
            shards = tuple(ShardEntry(**shard) for shard in values["shards"])
            return cls(shards, values["label_names"], values["split_counts"], version)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{name} is damaged ({error!r}): pack the images again") from error


class PackedSource(ImageSource):
    """Random access to the images of a local folder of packed shards; a read touches that image's pages alone."""

    def __init__(
        self, folder: Path, split: str | None = None, name: str | None = None, without: str | None = None
    ) -> None:
        """Maps the shards.

        Args:
            folder: Where the manifest is.
            split: The split to take, None for all.
            name: What errors call the data set, where that is not `folder` (a cache).
            without: A split to leave out, None for none.

        Raises:
            UsageError: no manifest or a damaged one, a shard missing or of another size, no such split, nothing left.
        """
        self._arguments = (folder, split, name, without)
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_bytes(), str(folder / MANIFEST_NAME))
        table = pa.Table.from_batches(
            [batch for shard in manifest.shards for batch in _map_shard(folder, shard)], schema=SCHEMA
        )
        self._images: list[pa.Array] = table.column("image").chunks
        self._chunk_starts = np.cumsum([0, *(len(chunk) for chunk in self._images)])
        self._rows = np.arange(len(table))
        if split is not None or without is not None:
            splits = table.column("split").to_pylist()
            self._rows = np.array(rows_of_split(splits, split, without, name or str(folder)), np.int64)
        # The small columns are copied out of the map; of the images only the offsets are looked at.
        sizes = np.concatenate([np.zeros(0, np.int64), *(_lengths(chunk) for chunk in self._images)])
        labels = table.column("label").fill_null(NO_LABEL).to_numpy().astype(np.int32)[self._rows]
        super().__init__(
            Keys(table.column("key").take(pa.array(self._rows)).combine_chunks()),
            labels if (labels != NO_LABEL).any() else None,
            manifest.label_names,
            sizes[self._rows],
        )
        self._splits = table.column("split")

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSource, self._arguments  # maps are opened anew in a spawned process

    def read(self, sample_id: int) -> bytes:
        row = int(self._rows[sample_id])
        chunk = int(np.searchsorted(self._chunk_starts, row, side="right")) - 1
        return bytes(self._images[chunk][row - int(self._chunk_starts[chunk])].as_py())

    def rows(self) -> Iterator[ImageRow]:
        """The images in order with all that the shards say of them."""
        for sample_id, key in enumerate(self.keys):
            label = None if self.labels is None or self.labels[sample_id] == NO_LABEL else int(self.labels[sample_id])
            name = None if label is None or self.label_names is None else self.label_names[label]
            yield ImageRow(key, self.read(sample_id), label, name, self._splits[int(self._rows[sample_id])].as_py())


def check_shard(path: Path, shard: ShardEntry, name: str) -> None:
    """Raises UsageError where the local file is missing or of another size; `name` says where it is from."""
    size = path.stat().st_size if path.exists() else None
    if size != shard.num_bytes:
        found = "missing" if size is None else f"{size} bytes long"
        raise UsageError(f"{name} is {found}, its manifest says {shard.num_bytes} bytes: pack the images again")


def _map_shard(folder: Path, shard: ShardEntry) -> list[pa.RecordBatch]:
    path = folder / shard.name
    check_shard(path, shard, str(path))
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _lengths(images: pa.Array) -> np.ndarray[Any, Any]:
    offsets = np.frombuffer(images.buffers()[1], np.int64)[images.offset : images.offset + len(images) + 1]
    return np.diff(offsets)
