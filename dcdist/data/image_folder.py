"""Folders of image files: what their subfolders mean, reading them in order, and random access to local ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcdist.data.location import Location
from dcdist.data.types import ImageRow, ImageSource, Keys
from dcdist.errors import RunError, UsageError

SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test", "heldout"})
_FILES_AT_ONCE = 64  # of a remote folder: fetched side by side, and held in memory


@dataclass(frozen=True)
class Layout:
    """What the folders of a data set of image files mean."""

    labels: dict[str, int] | None  # number by name, sorted, over all splits; None: no labels
    depth: int  # how many leading folders all images share
    has_splits: bool

    def split_of(self, name: str) -> str | None:
        return name.split("/")[self.depth] if self.has_splits else None

    def class_of(self, name: str) -> tuple[int, str] | None:
        """Number and name of the class of an image."""
        if self.labels is None:
            return None
        class_name = name.split("/")[self.depth + int(self.has_splits)]
        return self.labels[class_name], class_name

    @property
    def label_names(self) -> list[str] | None:
        return None if self.labels is None else list(self.labels)


def find_layout(names: Sequence[str], split: str | None = None) -> Layout:
    """Reads the meaning of the folders out of the images' relative paths.

    Folders that all images share say nothing. Below them come folders of splits, where all are named as SPLIT_NAMES
    or one is named as `split`; then folders of classes, where there are at least two and no image lies beside them.
    """
    parts = [name.split("/")[:-1] for name in names]
    depth = 0
    while True:
        folders = _folders_at(parts, depth)
        if folders is not None and (folders <= SPLIT_NAMES or split in folders):
            classes = _folders_at(parts, depth + 1)
            return Layout(_number_classes(classes), depth, has_splits=True)
        if folders is None or len(folders) > 1:
            return Layout(_number_classes(folders), depth, has_splits=False)
        depth += 1


def _folders_at(parts: list[list[str]], depth: int) -> set[str] | None:
    """The folders at this depth; None where an image lies beside them."""
    if any(len(folders) <= depth for folders in parts):
        return None
    return {folders[depth] for folders in parts}


def _number_classes(folders: set[str] | None) -> dict[str, int] | None:
    if folders is None or len(folders) < 2:
        return None
    return {name: number for number, name in enumerate(sorted(folders))}


def folder_rows(location: Location, split: str | None = None) -> Iterator[ImageRow]:
    """The images of a folder in the order of their paths; of a remote one many are fetched at once."""
    layout = find_layout([entry.name for entry in location.files], split)
    for start in range(0, len(location.files), _FILES_AT_ONCE):
        entries = location.files[start : start + _FILES_AT_ONCE]
        images: Iterable[bytes]
        if location.is_local:
            images = (_read_file(location.path_of(entry.name), entry.name) for entry in entries)
        else:
            images = location.fetch([entry.name for entry in entries])
        for entry, image in zip(entries, images, strict=True):
            yield labelled_row(layout, entry.name, image)


def labelled_row(layout: Layout, name: str, image: bytes) -> ImageRow:
    """The row of a file by its relative path."""
    label, label_name = layout.class_of(name) or (None, None)
    return ImageRow(name, image, label, label_name, layout.split_of(name))


class FolderSource(ImageSource):
    """Random access to the image files of a local folder."""

    def __init__(self, location: Location, split: str | None = None, without: str | None = None) -> None:
        """Lists the files.

        Args:
            location: Local, of kind `folder`.
            split: The split to take, None for all.
            without: A split to leave out, None for none.

        Raises:
            UsageError: the split does not exist, nothing is left, or a name is not UTF-8.
        """
        layout = find_layout([entry.name for entry in location.files], without if split is None else split)
        splits = [layout.split_of(entry.name) for entry in location.files]
        entries = [location.files[index] for index in rows_of_split(splits, split, without, location.url)]
        self._root = location.path
        classes = [layout.class_of(entry.name) for entry in entries]
        labels = None if layout.labels is None else np.array([found[0] for found in classes if found], np.int32)
        try:
            keys = Keys.of([entry.name for entry in entries])
        except UnicodeEncodeError as error:
            raise UsageError(f"a file name below {location.url} is not UTF-8, rename it: {error.object!r}") from error
        super().__init__(keys, labels, layout.label_names, np.array([entry.size for entry in entries], np.int64))

    def read(self, sample_id: int) -> bytes:
        key = self.keys[sample_id]
        return _read_file(f"{self._root}/{key}", key)


def rows_of_split(splits: Sequence[str | None], split: str | None, without: str | None, url: str) -> list[int]:
    """The numbers of the images that are of `split` (None: of any or none) and not of `without` (None: none left out).

    Args:
        splits: The split of each image.
        split: The one to take.
        without: The one to leave out.
        url: What errors call the data set.

    Raises:
        UsageError: there is no such split (it names those that there are, with their counts), or nothing is left.
    """
    left = [index for index, name in enumerate(splits) if without is None or name != without]
    rows = left if split is None else [index for index in left if splits[index] == split]
    if rows or not splits:
        return rows
    names, counts = np.unique([name for name in splits if name is not None], return_counts=True)
    there = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True)) or None
    if split is not None and split not in names:
        raise UsageError(f"{url} has no split {split!r}: " + (f"it has {there}" if there else "it is not split"))
    raise UsageError(f"{url} has no images but those of split {without!r}, which are left out: it has {there}")


def _read_file(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"image {key!r} cannot be read any more ({error}); was the folder changed?") from error
