"""Where a data set lies and of which kind it is: image files, Parquet, tar or packed shards, local or behind fsspec."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dcdist.errors import UsageError
from dcdist.filesystems import failing_as_os_error, open_filesystem

MANIFEST_NAME = "dcdist-pack.json"  # written last: shards without it are an unfinished pack
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PARQUET_SUFFIXES = (".parquet", ".pq")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SHARD_SUFFIX = ".arrow"

Kind = Literal["folder", "parquet", "tar", "packed"]


@dataclass(frozen=True)
class FileEntry:
    """A file as its listing shows it."""

    name: str  # relative to the location's path; of a single file its own name
    size: int
    stamp: str  # changes when the file does: time of modification or ETag


@dataclass(frozen=True)
class Location:
    """A data set that exists."""

    url: str
    filesystem: Any
    path: str  # of the folder, or of the folder that the single file is in
    kind: Kind
    files: tuple[FileEntry, ...]  # those of this kind, sorted by name

    @property
    def is_local(self) -> bool:
        return is_local(self.filesystem)

    def path_of(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """The file on a local disk, for as long as the block runs: pyarrow gets no remote file objects.

        Its threads calling back into Python can abort the process at exit.
        """
        if self.is_local:
            yield Path(self.path_of(name))
            return
        with tempfile.TemporaryDirectory(prefix="dcdist-") as folder:
            target = Path(folder) / PurePosixPath(name).name
            path = self.path_of(name)
            with failing_as_os_error(self.filesystem.unstrip_protocol(path)):
                self.filesystem.get_file(path, str(target))
            yield target

    def fetch(self, names: Sequence[str]) -> list[bytes]:
        """The content of files of a remote location, many at once."""
        paths = [self.path_of(name) for name in names]
        with failing_as_os_error(self.url):
            contents = self.filesystem.cat(paths)
        return [bytes(contents[path]) for path in paths]


def is_local(filesystem: Any) -> bool:
    protocols = filesystem.protocol
    return "file" in ((protocols,) if isinstance(protocols, str) else protocols)


def locate(url: str | os.PathLike[str]) -> Location:
    """Finds out what kind of data set lies at a path or URL.

    Raises:
        UsageError: nothing there, nothing that is known, an unfinished pack, or several kinds at once; an unknown
            protocol, or its package is not installed.
        StorageError: a server fails, refuses or cannot be reached.
    """
    filesystem, path = open_filesystem(url)
    name = os.fspath(url)
    info = _info(filesystem, path, name)
    if info["type"] == "file":
        kind = _kind_of(path)
        if kind not in ("parquet", "tar"):
            expected = ", ".join((*PARQUET_SUFFIXES, *TAR_SUFFIXES))
            raise UsageError(f"{name} is a single file: expected one of {expected}, or a folder")
        parent, _, file_name = path.rpartition("/")
        return Location(name, filesystem, parent, kind, (FileEntry(file_name, int(info["size"]), _stamp(info)),))
    if info["type"] != "directory":
        raise UsageError(f"{name} does not exist: expected a folder of images, Parquet, tar or packed shards")
    with failing_as_os_error(name):
        entries = sorted(_walk_local(path) if is_local(filesystem) else _walk_remote(filesystem, path), key=_by_name)
    kind = _kind_of_folder(name, entries)
    files = tuple(entry for entry in entries if _kind_of(entry.name) == kind)
    return Location(name, filesystem, path, kind, files)


def _info(filesystem: Any, path: str, name: str) -> dict[str, Any]:
    with failing_as_os_error(name):
        try:  # not isfile() or isdir() of fsspec, which take a failing server for a missing file
            return dict(filesystem.info(path))
        except (FileNotFoundError, NotADirectoryError):
            return {"type": "nothing"}


def _kind_of_folder(name: str, entries: list[FileEntry]) -> Kind:
    if any(entry.name == MANIFEST_NAME for entry in entries):
        return "packed"
    counts = Counter(kind for entry in entries if (kind := _kind_of(entry.name)) is not None)
    if counts["packed"]:
        raise UsageError(
            f"{name} holds {counts['packed']} packed shard(s) but no {MANIFEST_NAME}: "
            "packing was interrupted; pack again with overwrite"
        )
    if not counts:
        others = Counter(PurePosixPath(entry.name).suffix or "no suffix" for entry in entries)
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5)) or "no files"
        raise UsageError(
            f"{name} holds no images ({found}): expected {', '.join(IMAGE_SUFFIXES)}, Parquet, tar or packed shards"
        )
    if len(counts) > 1:
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items()).replace("folder", "image")
        raise UsageError(f"{name} holds files of several kinds ({found}): name the folder or the file that is meant")
    return next(iter(counts))


def _kind_of(name: str) -> Kind | None:
    lowered = name.lower()
    if lowered.endswith(SHARD_SUFFIX):
        return "packed"
    if lowered.endswith(PARQUET_SUFFIXES):
        return "parquet"
    if lowered.endswith(TAR_SUFFIXES):
        return "tar"
    return "folder" if lowered.endswith(IMAGE_SUFFIXES) else None


def _walk_local(root: str) -> Iterator[FileEntry]:
    """Every file below, links followed, no hidden ones; fsspec's own walk is several times slower."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in names:
            if name.startswith("."):
                continue
            if _kind_of(name) is None:
                yield FileEntry(f"{prefix}{name}", 0, "")
                continue
            try:
                status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a Path object a file is what makes it slow
            except OSError as error:
                raise UsageError(f"{folder}/{name} cannot be read: {error}") from error
            yield FileEntry(f"{prefix}{name}", status.st_size, str(status.st_mtime_ns))


def _walk_remote(filesystem: Any, root: str) -> Iterator[FileEntry]:
    for path, info in filesystem.find(root, detail=True).items():
        name = path.removeprefix(root).lstrip("/")
        if not any(part.startswith(".") for part in name.split("/")):
            yield FileEntry(name, int(info["size"]), _stamp(info))


def _stamp(info: dict[str, Any]) -> str:
    return "|".join(str(info[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in info)


def _by_name(entry: FileEntry) -> str:
    return entry.name
