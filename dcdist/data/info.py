"""What is in a data set: counts, sizes, formats, and by name every image that does not decode."""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dcdist.data.decode import UndecodableImage, decode_image
from dcdist.data.location import locate
from dcdist.data.pack import copy_shards
from dcdist.data.packed import PackedSource
from dcdist.data.rows import image_rows
from dcdist.data.types import Fingerprint, ImageRow

_UNDECODABLE_SHOWN = 20


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of a number."""

    smallest: int
    median: float
    largest: int

    @classmethod
    def of(cls, values: list[int]) -> Spread | None:
        return cls(min(values), float(np.median(values)), max(values)) if values else None


@dataclass(frozen=True)
class DataInfo:
    """What `info` found. Counts by name are sorted by name; images without a split or label count under None."""

    root: str
    kind: str
    num_images: int
    num_bytes: int
    split_counts: dict[str | None, int]
    label_counts: dict[str | None, int]
    formats: dict[str, int]  # JPEG, PNG, ... of the images that decode
    modes: dict[str, int]  # L (grey), RGB, ... as Pillow names them
    encoded_bytes: Spread | None
    widths: Spread | None
    heights: Spread | None
    undecodable: dict[str, str]  # reason by key
    fingerprint: str

    def lines(self) -> list[str]:
        """The findings as plain text."""
        lines = [
            f"{self.root} ({self.kind})",
            f"images       {self.num_images:,} ({self.num_bytes:,} bytes)",
            f"splits       {_counts(self.split_counts)}",
            f"labels       {_counts(self.label_counts)}",
            f"formats      {_counts(self.formats)}",
            f"modes        {_counts(self.modes)}",
            f"bytes        {_spread(self.encoded_bytes)}",
            f"width        {_spread(self.widths)}",
            f"height       {_spread(self.heights)}",
            f"undecodable  {len(self.undecodable):,}",
        ]
        shown = list(self.undecodable.items())[:_UNDECODABLE_SHOWN]
        lines += [f"  {key}: {reason}" for key, reason in shown]
        if len(self.undecodable) > len(shown):
            lines.append(f"  and {len(self.undecodable) - len(shown):,} more")
        return [*lines, f"fingerprint  {self.fingerprint}"]


def info(root: str | os.PathLike[str]) -> DataInfo:
    """Reads and decodes every image of a data set of any kind, local or remote, without packing it.

    Raises:
        UsageError: nothing there, nothing that is known, or damaged.
    """
    location = locate(root)
    if location.kind != "packed" or location.is_local:
        return _look(os.fspath(root), location.kind, image_rows(location))
    with tempfile.TemporaryDirectory(prefix="dcdist-") as folder:
        copy_shards(os.fspath(root), Path(folder))
        return _look(os.fspath(root), location.kind, PackedSource(Path(folder)).rows())


def _look(root: str, kind: str, rows: Iterator[ImageRow]) -> DataInfo:
    fingerprint = Fingerprint()
    splits: Counter[str | None] = Counter()
    labels: Counter[tuple[int, str] | None] = Counter()
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    sizes: list[int] = []
    widths: list[int] = []
    heights: list[int] = []
    undecodable: dict[str, str] = {}
    for row in rows:
        fingerprint.add(row.key, len(row.image))
        sizes.append(len(row.image))
        splits[row.split] += 1
        labels[None if row.label is None else (row.label, row.label_name or str(row.label))] += 1
        try:
            height, width, _ = decode_image(row.image).shape
        except UndecodableImage as error:
            undecodable[row.key] = str(error)
            continue
        widths.append(width)
        heights.append(height)
        with Image.open(io.BytesIO(row.image)) as header:
            formats[header.format or "unknown"] += 1
            modes[header.mode] += 1
    return DataInfo(
        root=root,
        kind=kind,
        num_images=len(sizes),
        num_bytes=sum(sizes),
        split_counts=dict(sorted(splits.items(), key=lambda item: (item[0] is None, item[0] or ""))),
        label_counts={
            None if label is None else label[1]: count
            for label, count in sorted(labels.items(), key=lambda item: (item[0] is None, item[0] or (0, "")))
        },
        formats=dict(sorted(formats.items())),
        modes=dict(sorted(modes.items())),
        encoded_bytes=Spread.of(sizes),
        widths=Spread.of(widths),
        heights=Spread.of(heights),
        undecodable=undecodable,
        fingerprint=fingerprint.hexdigest(),
    )


def _counts(counts: dict[str, int] | dict[str | None, int]) -> str:
    if set(counts) <= {None}:
        return "none"
    return ", ".join(f"{'none' if name is None else name} {count:,}" for name, count in counts.items())


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "none"
    return f"{spread.smallest:,} to {spread.largest:,}, median {spread.median:,.6g}"
