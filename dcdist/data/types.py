"""What the data layer passes around: rows of a data set while it is read through, and a source of images by sample_id.

Shapes: N images.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa

NO_LABEL = -1  # the label of an image without one


class ImageRow(NamedTuple):
    """One image as it comes out of a file, before it has a sample_id."""

    key: str
    image: bytes  # as encoded in the source: a JPEG, a PNG, ...
    label: int | None = None
    label_name: str | None = None
    split: str | None = None


class Keys(Sequence[str]):
    """N strings in Arrow's memory: no Python object a key, so that the copy of each loading process is small."""

    def __init__(self, strings: pa.Array) -> None:
        self._strings = strings

    @classmethod
    def of(cls, strings: Sequence[str]) -> Keys:
        return cls(pa.array(strings, pa.large_string()))

    def __len__(self) -> int:
        return len(self._strings)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Keys: ...
    def __getitem__(self, index: int | slice) -> str | Keys:
        if isinstance(index, slice):
            return Keys(self._strings[index])
        return str(self._strings[int(index)].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self._strings[start : start + 4096].to_pylist()


class Fingerprint:
    """Identity of a data set: sha256 over keys in order, sizes and count; neither labels nor where it lies."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._count = 0

    def add(self, key: str, size: int) -> None:
        self._digest.update(f"{key}\0{size}\0".encode())
        self._count += 1

    def hexdigest(self) -> str:
        complete = self._digest.copy()
        complete.update(f"{self._count} images".encode())
        return complete.hexdigest()


class ImageSource(ABC):
    """N images with random access by sample_id 0..N-1. Sources pickle: each loading process has a copy.

    Attributes:
        keys: N unique names, in the order that gives the sample_ids.
        labels: int32 [N], NO_LABEL where an image has none; None where no image has one.
        label_names: the name of each label, over all splits; None where the source gives no names.
        sizes: int64 [N], bytes of each encoded image.
        undecodable: reason by sample_id, of the images that were found not to decode so far.
    """

    def __init__(
        self,
        keys: Keys,
        labels: np.ndarray[Any, Any] | None,
        label_names: list[str] | None,
        sizes: np.ndarray[Any, Any],
    ) -> None:
        self.keys: Sequence[str] = keys
        self.labels = labels
        self.label_names = label_names
        self.sizes = sizes
        self.undecodable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read(self, sample_id: int) -> bytes:
        """The encoded image.

        Raises:
            RunError: the image is not there any more.
        """

    def fingerprint(self) -> str:
        """The hex digest that Fingerprint describes, of the images of this source."""
        fingerprint = Fingerprint()
        for key, size in zip(self.keys, self.sizes.tolist(), strict=True):
            fingerprint.add(key, size)
        return fingerprint.hexdigest()
