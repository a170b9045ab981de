"""The new lines of a file that grows, without reading the old ones again."""

from __future__ import annotations

from collections.abc import Iterator

from dcdist.filesystems import StorageError
from dcdist.storage import Storage

_BLOCK = 1 << 18  # bytes


class GrowingLines:
    """The lines of a file in their order, each once.

    Behind a URL the file is replaced by longer ones that begin alike; what is new of them is a request for a range.

    Args:
        storage: of the run's folder.
        path: of the file, which need not exist yet.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self.num_bytes = 0  # of the lines that were given out
        self._storage = storage
        self._path = path

    def new(self) -> Iterator[bytes]:
        """Lines that became whole since they were asked for last, without their ends; a half one waits.

        Who stops in between goes on after the last line. Raises OSError where the storage fails.
        """
        try:
            if self._storage.size(self._path) <= self.num_bytes:
                return
            with self._storage.open_for_reading(self._path) as file:
                file.seek(self.num_bytes)
                rest = b""
                while block := file.read(_BLOCK):
                    *lines, rest = (rest + block).split(b"\n")
                    for line in lines:
                        self.num_bytes += len(line) + 1
                        yield line
        except FileNotFoundError:
            return
        except OSError:
            raise
        except Exception as error:  # libraries of object stores have exceptions of their own
            raise StorageError(f"{self._storage.url(self._path)}: {type(error).__name__}: {error}") from error
