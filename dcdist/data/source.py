"""Opens a data set of any kind, local or remote, for random access by sample_id."""

from __future__ import annotations

import os
from pathlib import Path

from dcdist.data.cache import cached_shards, default_cache_directory
from dcdist.data.image_folder import FolderSource
from dcdist.data.location import locate
from dcdist.data.packed import PackedSource
from dcdist.data.types import NO_LABEL, ImageRow, ImageSource, Keys

__all__ = ["NO_LABEL", "ImageRow", "ImageSource", "Keys", "open_source"]


def open_source(
    root: str | os.PathLike[str], split: str | None = None, cache_directory: str | os.PathLike[str] | None = None
) -> ImageSource:
    """Opens the images at `root`.

    Local image files and local packed shards are read where they lie. Everything else (Parquet, tar, anything remote)
    is packed into the cache first, once.

    Args:
        root: A folder of images (flat, or with a folder a class, or those below a folder a split), a Parquet or tar
            file or a folder of them, or packed shards; a local path or any fsspec URL.
        split: Only the images of this split; None takes all.
        cache_directory: Where the cache is; by default $DCDIST_CACHE or ~/.cache/dcdist.

    Raises:
        UsageError: nothing there, nothing that is known, damaged, or no such split (it names those that there are).
    """
    location = locate(root)
    if location.is_local and location.kind == "folder":
        return FolderSource(location, split)
    if location.is_local and location.kind == "packed":
        return PackedSource(Path(location.path), split, location.url)
    cache = default_cache_directory() if cache_directory is None else Path(cache_directory)
    return PackedSource(cached_shards(location, split, cache), split, location.url)
