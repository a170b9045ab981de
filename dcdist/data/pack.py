"""Packs images of any kind into Arrow shards, streaming: memory holds one record batch of images and all keys."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dcdist.data.location import MANIFEST_NAME, SHARD_SUFFIX, is_local, locate
from dcdist.data.packed import SCHEMA, Manifest, PackedSource, ShardEntry, check_shard
from dcdist.data.rows import image_rows
from dcdist.data.types import Fingerprint, ImageRow
from dcdist.errors import UsageError
from dcdist.filesystems import failing_as_os_error, open_filesystem

SHARD_BYTES = 256 * 2**20
_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class PackSummary:
    """What was packed."""

    num_images: int
    num_bytes: int  # of the encoded images
    num_shards: int
    split_counts: dict[str, int]
    label_names: list[str] | None
    fingerprint: str

    def line(self) -> str:
        """For a terminal."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.split_counts.items())
        of_splits = f" ({splits})" if splits else ""
        size = f"{self.num_bytes:,} bytes in {self.num_shards} shard{'s' * (self.num_shards != 1)}"
        return f"packed {self.num_images:,} images{of_splits}, {size}, fingerprint {self.fingerprint[:12]}"


def pack(
    source_url: str | os.PathLike[str],
    destination_url: str | os.PathLike[str],
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> PackSummary:
    """Packs a folder of images, Parquet, tar or (to change the size of shards) packed shards.

    Args:
        source_url: What to pack, a local path or any fsspec URL.
        destination_url: Folder for the shards, a local path or any fsspec URL.
        shard_bytes: A shard is closed as soon as its images are so large together.
        overwrite: Replace shards that are there already.

    Raises:
        UsageError: nothing to pack, shards are there already, or source and destination are the same.
        StorageError: a server fails, refuses or cannot be reached.
    """
    location = locate(source_url)
    filesystem, path = open_filesystem(destination_url)
    if location.is_local and is_local(filesystem) and Path(location.path).resolve() == Path(path).resolve():
        raise UsageError(f"{os.fspath(destination_url)} is both source and destination: choose another destination")
    if location.kind != "packed" or location.is_local:
        return write_shards(image_rows(location), destination_url, shard_bytes, overwrite)
    with tempfile.TemporaryDirectory(prefix="dcdist-") as folder:
        copy_shards(os.fspath(source_url), Path(folder))
        return write_shards(PackedSource(Path(folder)).rows(), destination_url, shard_bytes, overwrite)


def write_shards(
    rows: Iterable[ImageRow],
    destination_url: str | os.PathLike[str],
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> PackSummary:
    """Writes rows, whose keys are unique, as packed shards; the manifest last, so a part never passes for the whole.

    Raises:
        UsageError: no rows, shards are there already, or one label has two names.
        StorageError: a server fails, refuses or cannot be reached.
    """
    filesystem, path = open_filesystem(destination_url)
    with failing_as_os_error(os.fspath(destination_url)):
        _prepare(filesystem, path, overwrite)
    shards: list[ShardEntry] = []
    splits: Counter[str] = Counter()
    names: dict[int, str | None] = {}
    fingerprint, num_bytes = Fingerprint(), 0
    for shard_rows in _grouped(rows, shard_bytes):
        name = f"shard-{len(shards):05d}{SHARD_SUFFIX}"
        num_rows = 0
        with _local_target(filesystem, f"{path}/{name}") as target:
            with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
                for batch_rows in _batches(shard_rows):
                    writer.write_batch(_record_batch(batch_rows))
                    for row in batch_rows:
                        fingerprint.add(row.key, len(row.image))
                        num_bytes += len(row.image)
                        splits.update([row.split] if row.split is not None else [])
                        _note_label(names, row)
                    num_rows += len(batch_rows)
            shards.append(ShardEntry(name, num_rows, target.stat().st_size))
    if not shards:
        raise UsageError(f"there is no image to pack into {os.fspath(destination_url)}")
    manifest = Manifest(tuple(shards), _label_names(names), dict(sorted(splits.items())))
    with failing_as_os_error(f"{os.fspath(destination_url)}/{MANIFEST_NAME}"):
        _publish(filesystem, f"{path}/{MANIFEST_NAME}", manifest.to_json())
    return PackSummary(
        num_images=manifest.num_rows,
        num_bytes=num_bytes,
        num_shards=len(shards),
        split_counts=manifest.split_counts,
        label_names=manifest.label_names,
        fingerprint=fingerprint.hexdigest(),
    )


def copy_shards(source_url: str, folder: Path) -> None:
    """Copies packed shards from any filesystem into a local folder, the manifest last.

    Raises:
        UsageError: the manifest is damaged, a shard is missing or has another size than it says.
        StorageError: a server fails, refuses or cannot be reached.
    """
    filesystem, path = open_filesystem(source_url)
    with failing_as_os_error(f"{source_url}/{MANIFEST_NAME}"):
        text = filesystem.cat_file(f"{path}/{MANIFEST_NAME}")
    for shard in Manifest.from_json(text, f"{source_url}/{MANIFEST_NAME}").shards:
        url = f"{source_url}/{shard.name}"
        # A missing one is left to the check; exists() of fsspec would take a failing server for a missing file.
        with contextlib.suppress(FileNotFoundError), failing_as_os_error(url):
            filesystem.get_file(f"{path}/{shard.name}", str(folder / shard.name))
        check_shard(folder / shard.name, shard, url)
    (folder / MANIFEST_NAME).write_bytes(text)


def _prepare(filesystem: Any, path: str, overwrite: bool) -> None:
    if is_local(filesystem):
        filesystem.makedirs(path, exist_ok=True)
    there = [name for name in filesystem.find(path, maxdepth=1) if name.endswith((SHARD_SUFFIX, MANIFEST_NAME))]
    if there and not overwrite:
        raise UsageError(f"{path} holds packed shards already: take another destination, or --overwrite")
    # The manifest goes first: what is left of the old shards must not pass for a whole.
    for name in sorted(there, key=lambda name: not name.endswith(MANIFEST_NAME)):
        filesystem.rm_file(name)


def _publish(filesystem: Any, path: str, text: bytes) -> None:
    if not is_local(filesystem):
        filesystem.pipe_file(path, text)
        return
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(text)
    temporary.replace(path)


@contextlib.contextmanager
def _local_target(filesystem: Any, path: str) -> Iterator[Path]:
    """A local path to write to, whose file lies at `path` of the filesystem after the block."""
    if is_local(filesystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="dcdist-") as folder:
        target = Path(folder) / "shard"
        yield target
        with failing_as_os_error(filesystem.unstrip_protocol(path)):
            filesystem.put_file(str(target), path)


def _grouped(rows: Iterable[ImageRow], shard_bytes: int) -> Iterator[Iterator[ImageRow]]:
    """One iterator of rows a shard; each is used up before the next is asked for."""
    source = iter(rows)

    def one_shard(first: ImageRow) -> Iterator[ImageRow]:
        size = len(first.image)
        yield first
        while size < shard_bytes and (row := next(source, None)) is not None:
            size += len(row.image)
            yield row

    while (first := next(source, None)) is not None:
        yield one_shard(first)


def _batches(rows: Iterator[ImageRow]) -> Iterator[list[ImageRow]]:
    batch: list[ImageRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.image)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _record_batch(rows: list[ImageRow]) -> pa.RecordBatch:
    columns = {
        "key": [row.key for row in rows],
        "image": [row.image for row in rows],
        "label": [row.label for row in rows],
        "split": [row.split for row in rows],
    }
    try:
        return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)
    except UnicodeEncodeError as error:
        raise UsageError(f"a name is not UTF-8, rename it: {error.object!r}") from error


def _note_label(names: dict[int, str | None], row: ImageRow) -> None:
    if row.label is None:
        return
    known = names.setdefault(row.label, row.label_name)
    if known != row.label_name:
        raise UsageError(
            f"label {row.label} is named {known!r} and, at {row.key!r}, {row.label_name!r}: one name a label"
        )


def _label_names(names: dict[int, str | None]) -> list[str] | None:
    if not any(names.values()):
        return None
    return [names.get(label) or str(label) for label in range(max(names) + 1)]
