"""A local cache of packed shards for everything that allows no random access: Parquet, tar, whatever is remote."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from dcdist.data.location import MANIFEST_NAME, Location
from dcdist.data.pack import copy_shards, write_shards
from dcdist.data.packed import FORMAT_VERSION
from dcdist.data.rows import image_rows


def default_cache_directory() -> Path:
    """$DCDIST_CACHE, or ~/.cache/dcdist."""
    return Path(os.environ.get("DCDIST_CACHE") or Path.home() / ".cache" / "dcdist")


def cached_shards(location: Location, split: str | None, cache_directory: Path) -> Path:
    """The folder of packed shards with the content of `location`, made if it is not there yet.

    It is named by a digest of the URL and of the listing (names, sizes, times or ETags), so changed data is packed
    anew. It appears by a rename, complete or not at all; of several processes one works and the others wait for it.
    """
    cache_directory.mkdir(parents=True, exist_ok=True)
    digest = _digest(location, split)
    target = cache_directory / digest
    with (cache_directory / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed, by a kill as well
        if (target / MANIFEST_NAME).exists():
            return target
        for leftover in cache_directory.glob(f"{digest}.tmp-*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        building = Path(tempfile.mkdtemp(prefix=f"{digest}.tmp-", dir=cache_directory))
        try:
            if location.kind == "packed":
                copy_shards(location.url, building)
            else:
                write_shards(image_rows(location, split), building)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def is_cached(location: Location, split: str | None, cache_directory: Path) -> bool:
    """Whether `cached_shards` would find its folder there."""
    return (cache_directory / _digest(location, split) / MANIFEST_NAME).exists()


def _digest(location: Location, split: str | None) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION}\0{location.url}\0{location.path}\0".encode())
    if location.kind in ("folder", "tar"):  # where the split's name helps to read the folders
        digest.update(f"{split}\0".encode())
    for entry in location.files:
        digest.update(f"{entry.name}\0{entry.size}\0{entry.stamp}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
