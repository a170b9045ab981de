"""The embedded sample: the handwritten digits that scikit-learn brings along, so nothing has to be downloaded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from dcdist.data.pack import PackSummary, write_shards
from dcdist.data.types import ImageRow


def make_digits(destination: str | os.PathLike[str], overwrite: bool = False) -> PackSummary:
    """Packs 1,797 grey images of 8 x 8 with labels 0..9, all of split `train`, as PNG; the same bytes each time.

    Raises:
        UsageError: packed shards are there already.
    """
    return write_shards(_rows(), destination, overwrite=overwrite)


def _rows() -> Iterator[ImageRow]:
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # values are 0..16
    for number, (image, label) in enumerate(zip(pixels, digits.target.tolist(), strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=0)  # stored: no bytes that depend on zlib's version
        yield ImageRow(f"digits/{number:04d}.png", buffer.getvalue(), label, str(label), "train")
