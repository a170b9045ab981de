"""File systems behind fsspec URLs: opened in one way, and failing in one way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import fsspec

from dcdist.errors import DcdistError, RunError, UsageError

_EXTRAS = {"s3": "s3", "s3a": "s3"}  # what of dcdist[...] brings a protocol; fsspec itself names other packages


class StorageError(RunError, OSError):
    """A server fails, refuses or cannot be reached. Where nobody handles it the run ends with this message."""


def open_filesystem(url: str | os.PathLike[str]) -> tuple[Any, str]:
    """The fsspec file system of a URL or local path, which keeps no listings, and the path in it.

    Raises:
        UsageError: unknown protocol, or its package is not installed.
        StorageError: the file system cannot be had for another reason.
    """
    text = os.fspath(url)
    with failing_as_os_error(text):
        try:
            filesystem, path = fsspec.url_to_fs(text, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(text.partition("://")[0])
            remedy = f"pip install 'dcdist[{extra}]'" if extra else "expected a local path, s3://... or the like"
            raise UsageError(f"{text!r} cannot be opened: {error}; {remedy}") from error
    return filesystem, path


@contextlib.contextmanager
def failing_as_os_error(url: str) -> Iterator[None]:
    """Libraries of object stores have exceptions of their own, and their OSErrors do not name the file.

    Raises:
        FileNotFoundError, FileExistsError: as the block raises them.
        StorageError: for whatever else the block raises, but for errors that are dcdist's already.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, DcdistError):
        raise
    except TimeoutError as error:
        raise StorageError(f"{url}: the server does not answer") from error
    except OSError as error:
        raise StorageError(f"{url}: {error}") from error
    except Exception as error:
        raise StorageError(f"{url}: {type(error).__name__}: {error}") from error
