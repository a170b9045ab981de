"""Opens a data set of any kind, local or remote, for random access by sample_id."""

from __future__ import annotations

import os
from pathlib import Path

from dcdist.data.cache import cached_shards, default_cache_directory, is_cached
from dcdist.data.image_folder import FolderSource
from dcdist.data.location import locate
from dcdist.data.packed import PackedSource
from dcdist.data.types import NO_LABEL, ImageRow, ImageSource, Keys

__all__ = ["NO_LABEL", "ImageRow", "ImageSource", "Keys", "open_source"]


def open_source(
    root: str | os.PathLike[str],
    split: str | None = None,
    cache_directory: str | os.PathLike[str] | None = None,
    without: str | None = None,
) -> ImageSource:
    """Opens the images at `root`.

    Local image files and local packed shards are read where they lie. Everything else (Parquet, tar, anything remote)
    is packed into the cache first, once.

    Args:
        root: A folder of images (flat, or with a folder a class, or those below a folder a split), a Parquet or tar
            file or a folder of them, or packed shards; a local path or any fsspec URL.
        split: Only the images of this split; None takes all.
        cache_directory: Where the cache is; by default $DCDIST_CACHE or ~/.cache/dcdist.
        without: No image of this split; None leaves out none.

    Raises:
        UsageError: nothing there, nothing that is known, damaged, no such split (it names those that there are), or
            nothing left.
    """
    location = locate(root)
    if location.is_local and location.kind == "folder":
        return FolderSource(location, split, without)
    if location.is_local and location.kind == "packed":
        return PackedSource(Path(location.path), split, location.url, without)
    shards = cached_shards(location, without if split is None else split, _cache(cache_directory))
    return PackedSource(shards, split, location.url, without)


def bytes_to_pack(
    root: str | os.PathLike[str],
    split: str | None = None,
    cache_directory: str | os.PathLike[str] | None = None,
    without: str | None = None,
) -> int:
    """How much `open_source` would have to copy into the cache first: 0 of what is read in place, or is there already.

    Raises:
        UsageError: nothing there, or nothing that is known.
    """
    location = locate(root)
    in_place = location.is_local and location.kind in ("folder", "packed")
    if in_place or is_cached(location, without if split is None else split, _cache(cache_directory)):
        return 0
    return sum(entry.size for entry in location.files)


def _cache(directory: str | os.PathLike[str] | None) -> Path:
    return default_cache_directory() if directory is None else Path(directory)
