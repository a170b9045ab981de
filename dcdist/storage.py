"""Files of a run on a local path or behind any fsspec URL, with the few operations that need care.

Local paths never go through fsspec: what is written there is on the disk (fsync of the file and of its folder) and
visible whole or not at all. Behind a URL a write is one PUT, listings are never cached. Every failure is an OSError;
behind a URL, beside FileNotFoundError and FileExistsError, a StorageError.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from fsspec.asyn import AsyncFileSystem

from dcdist.errors import UsageError
from dcdist.filesystems import failing_as_os_error, open_filesystem

logger = logging.getLogger(__name__)

UPLOAD_EVERY_SECONDS = 60.0
_MOST_WAITING = 1 << 20  # bytes of lines that a full disk keeps in memory

# A server that takes connections and never answers would otherwise be waited for through all retries of all libraries.
ANSWER_WITHIN_SECONDS = 90.0
MIN_BYTES_PER_SECOND = 1 << 20


class Storage(abc.ABC):
    """A folder, local or remote. Paths are relative to it, with "/" between names; folders need no creation.

    All methods raise OSError where the storage fails, FileNotFoundError where the path does not exist.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"

    def url(self, path: str = "") -> str:
        """The whole name of a path, for messages."""
        return f"{self.root}/{path}" if path else self.root

    @abc.abstractmethod
    def local_path(self, path: str = "") -> Path | None:
        """Where the path lies on this machine, None behind a URL."""

    @abc.abstractmethod
    def read_bytes(self, path: str) -> bytes:
        """The whole content."""

    @abc.abstractmethod
    def write_bytes(self, path: str, data: bytes) -> None:
        """Creates or replaces a file: at every instant a reader sees the old content or the new one, whole."""

    @abc.abstractmethod
    def create_exclusive(self, path: str, data: bytes) -> None:
        """Creates a file, visible with its whole content at once; of several processes one succeeds.

        Raises:
            FileExistsError: the path is taken.
        """

    @abc.abstractmethod
    def list(self, folder: str = "") -> list[str]:
        """Sorted names of the files and folders in it; of a folder that does not exist none."""

    @abc.abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""

    @abc.abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file."""

    @abc.abstractmethod
    def remove(self, path: str) -> None:
        """Removes a file; one that does not exist is fine."""

    @abc.abstractmethod
    def remove_tree(self, folder: str) -> None:
        """Removes a folder with all that it holds; one that does not exist is fine."""

    @abc.abstractmethod
    def open_for_reading(self, path: str) -> BinaryIO:
        """The file, seekable."""

    @abc.abstractmethod
    def open_for_writing(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A new file, stored when the block ends. It may be seen half written: only for what a later file vouches for.

        Raises:
            FileExistsError: a local file of this name exists.
        """

    @abc.abstractmethod
    def upload(self, local_path: Path, path: str) -> None:
        """Stores a copy of a local file, whole or not at all."""

    @abc.abstractmethod
    def download(self, path: str, local_path: Path) -> None:
        """Copies a file to a local path."""


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage of a local path, of file://... or of any other fsspec URL (s3://bucket/folder, memory://name).

    Raises:
        UsageError: unknown protocol, or its package is not installed.
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        return LocalStorage(text.removeprefix("file://"))
    return ObjectStorage(text) if "://" in text else LocalStorage(text)


def open_file(url: str, named: str = "") -> tuple[Storage, str]:
    """The storage of a file's folder or bucket, and its name there; raises UsageError that begins with `named`."""
    folder, slash, name = url.rpartition("/")
    if folder.endswith(":/") or name in ("", ".", ".."):
        example = f"s3://bucket/{name.strip('.') or 'name'}"
        raise UsageError(f"{named}{url!r} is no file in a folder or bucket, as in {example}")
    return open_storage(folder or slash or "."), name


class LocalStorage(Storage):
    """A folder of this machine, or of a file system that it mounts."""

    def local_path(self, path: str = "") -> Path:
        return Path(self.root, path)

    def read_bytes(self, path: str) -> bytes:
        return self.local_path(path).read_bytes()

    def write_bytes(self, path: str, data: bytes) -> None:
        with self._temporary(path) as (temporary, handle):
            _write_durably(handle, data)
            temporary.replace(self.local_path(path))

    def create_exclusive(self, path: str, data: bytes) -> None:
        with self._temporary(path) as (temporary, handle):
            _write_durably(handle, data)
            os.link(temporary, self.local_path(path))  # unlike a rename, fails where the name is taken

    def list(self, folder: str = "") -> list[str]:
        try:
            return sorted(entry.name for entry in self.local_path(folder).iterdir() if entry.suffix != ".tmp")
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        try:
            self.local_path(path).stat()
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        return self.local_path(path).stat().st_size

    def remove(self, path: str) -> None:
        self.local_path(path).unlink(missing_ok=True)

    def remove_tree(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.local_path(folder))

    def open_for_reading(self, path: str) -> BinaryIO:
        return self.local_path(path).open("rb")

    @contextlib.contextmanager
    def open_for_writing(self, path: str) -> Iterator[BinaryIO]:
        target = self.local_path(path)
        _make_folder(target.parent)
        with target.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        _sync_folder(target.parent)

    def upload(self, local_path: Path, path: str) -> None:
        with self._temporary(path) as (temporary, handle), local_path.open("rb") as source:
            shutil.copyfileobj(source, handle)
            _write_durably(handle, b"")
            temporary.replace(self.local_path(path))

    def download(self, path: str, local_path: Path) -> None:
        shutil.copyfile(self.local_path(path), local_path)

    @contextlib.contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[Path, BinaryIO]]:
        """A file beside `path`, to be renamed or linked within the block; its folder is synchronised afterwards.

        A kill in between leaves the file behind, which listings leave out.
        """
        folder = self.local_path(path).parent
        _make_folder(folder)
        temporary = folder / f".{Path(path).name}.{secrets.token_hex(6)}.tmp"
        try:
            with temporary.open("xb") as handle:
                yield temporary, handle
            _sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)


class ObjectStorage(Storage):
    """A folder behind an fsspec URL."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._fs, self._prefix = open_filesystem(self.root)

    def _patience(self, num_bytes: int = 0) -> dict[str, float]:
        """The keyword that bounds the time of an operation on this many bytes, where the file system has one."""
        if not isinstance(self._fs, AsyncFileSystem):
            return {}
        return {"timeout": ANSWER_WITHIN_SECONDS + num_bytes / MIN_BYTES_PER_SECOND}

    def _at(self, path: str) -> str:
        return f"{self._prefix}/{path}" if path else str(self._prefix)

    def _failing_as_os_error(self, path: str = "") -> contextlib.AbstractContextManager[None]:
        return failing_as_os_error(self.url(path))

    def local_path(self, path: str = "") -> None:  # noqa: ARG002
        return None

    def read_bytes(self, path: str) -> bytes:
        with self._failing_as_os_error(path):
            return cast(bytes, self._fs.cat_file(self._at(path), **self._patience()))

    def write_bytes(self, path: str, data: bytes) -> None:
        with self._failing_as_os_error(path):
            self._fs.pipe_file(self._at(path), data, **self._patience(len(data)))

    def create_exclusive(self, path: str, data: bytes) -> None:
        with self._failing_as_os_error(path):
            try:
                self._fs.pipe_file(self._at(path), data, mode="create", **self._patience(len(data)))
            except OSError as error:
                # s3fs sees a taken name where the answer says which condition failed, which some servers leave out.
                answer = getattr(error.__cause__, "response", {}).get("Error", {})
                if answer.get("Code") == "PreconditionFailed":
                    raise FileExistsError(f"{self.url(path)}: {error}") from error
                raise

    def list(self, folder: str = "") -> list[str]:
        with self._failing_as_os_error(folder):
            try:
                paths = self._fs.ls(self._at(folder), detail=False, **self._patience())
            except FileNotFoundError:
                return []
        names = {path.rstrip("/").removeprefix(f"{self._at(folder)}/") for path in paths}
        return sorted(name for name in names if "/" not in name)  # a folder's own entry is no name in it

    def exists(self, path: str) -> bool:
        with self._failing_as_os_error(path):
            try:  # not exists() of fsspec, which takes a failing server for a missing file
                self._fs.info(self._at(path), **self._patience())
            except FileNotFoundError:
                return False
            return True

    def size(self, path: str) -> int:
        with self._failing_as_os_error(path):
            return int(self._fs.info(self._at(path), **self._patience())["size"])

    def remove(self, path: str) -> None:
        with self._failing_as_os_error(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(path), **self._patience())

    def remove_tree(self, folder: str) -> None:
        with self._failing_as_os_error(folder), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._at(folder), recursive=True, **self._patience())

    def open_for_reading(self, path: str) -> BinaryIO:
        with self._failing_as_os_error(path):
            return cast(BinaryIO, self._fs.open(self._at(path), "rb"))

    @contextlib.contextmanager
    def open_for_writing(self, path: str) -> Iterator[BinaryIO]:
        with tempfile.NamedTemporaryFile(prefix="dcdist-") as temporary:
            yield cast(BinaryIO, temporary)
            temporary.flush()
            self.upload(Path(temporary.name), path)

    def upload(self, local_path: Path, path: str) -> None:
        with self._failing_as_os_error(path):
            patience = self._patience(local_path.stat().st_size)
            self._fs.put_file(str(local_path), self._at(path), **patience)

    def download(self, path: str, local_path: Path) -> None:
        with self._failing_as_os_error(path):
            patience = self._patience(self.size(path))
            self._fs.get_file(self._at(path), str(local_path), **patience)


class GrowingFile:
    """A file of lines that one process appends to.

    Local: each line is in the file when `append` returns. Behind a URL: the lines wait in a temporary file, which is
    uploaded as a whole after a minute and on `sync`; a kill loses what came after that. Where `append` raises OSError
    the line waits in memory, with others up to 1 MiB, and is written ahead of the next one.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self._path = path
        self._uploaded_at = time.monotonic()
        self._handle: Any
        local_path = storage.local_path(path)
        self._is_local = local_path is not None
        if local_path is not None:
            _make_folder(local_path.parent)
            self._handle = local_path.open("ab", buffering=_MOST_WAITING)
        else:
            self._handle = tempfile.NamedTemporaryFile(prefix="dcdist-", buffering=_MOST_WAITING)  # noqa: SIM115

    def append(self, line: str) -> None:
        """Adds a line, given without its line break. A periodic upload that fails is a warning: the next repeats it."""
        self._handle.write(line.encode() + b"\n")
        self._handle.flush()
        if not self._is_local and time.monotonic() - self._uploaded_at >= UPLOAD_EVERY_SECONDS:
            try:
                self.sync()
            except OSError as error:
                self._uploaded_at = time.monotonic()
                logger.warning("%s is not uploaded for now: %s", self._storage.url(self._path), error)

    def sync(self) -> None:
        """Returns when all lines are stored. Raises OSError."""
        self._handle.flush()
        if self._is_local:
            os.fsync(self._handle.fileno())
        else:
            self._storage.upload(Path(self._handle.name), self._path)
            self._uploaded_at = time.monotonic()

    def close(self) -> None:
        """Stores what is left; the file cannot grow any more. Raises OSError."""
        try:
            self.sync()
        finally:
            self._handle.close()

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # the error that ends the block is the one to hear of
                self.close()


def _write_durably(handle: BinaryIO, data: bytes) -> None:
    handle.write(data)
    handle.flush()
    os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes new names in a folder outlast a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Creates a folder and those above it, each durably."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        _sync_folder(parent.parent)
