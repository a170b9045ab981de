"""Whole images of a source, by their file names, at a long side of so many pixels.

Shapes: H x W the image as it is stored, h x w resized.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dcdist.data.decode import UndecodableImage, decode_image
from dcdist.data.source import ImageSource
from dcdist.errors import UsageError

_IMAGES_AHEAD = 4  # decoded by each thread before they are asked for

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image as it is stored


class WholeImage(NamedTuple):
    """An image at its new size."""

    pixels: torch.Tensor  # uint8 [1, h, w, 3]
    factor: float  # h / H and w / W before rounding

    def crop(self, box: Box) -> torch.Tensor:
        """What the box shows, uint8 [1, h', w', 3]; its edges are rounded to pixels of the new size.

        Raises:
            ValueError: it holds no pixel of the image.
        """
        _, height, width, _ = self.pixels.shape
        left, top, right, bottom = (max(0, round(edge * self.factor)) for edge in box)
        cut = self.pixels[:, top:bottom, left:right]
        if 0 in cut.shape:
            full = f"{round(width / self.factor)} x {round(height / self.factor)}"
            raise ValueError(f"the box {list(box)} holds no pixel of the image, which is {full}")
        return cut


def ids_by_name(source: ImageSource, root: str) -> dict[str, int]:
    """The sample ids by file name, without folder and suffix.

    Raises:
        UsageError: two images have the same name.
    """
    ids: dict[str, int] = {}
    for sample_id, key in enumerate(source.keys):
        name = PurePosixPath(key).stem
        if name in ids:
            raise UsageError(
                f"{root} holds two images named {name!r}, {source.keys[ids[name]]} and {key}: a ground truth names "
                "images by file name alone, so leave one of them out"
            )
        ids[name] = sample_id
    return ids


def load_whole_images(
    source: ImageSource, sample_ids: Iterable[int], long_side: int, num_threads: int
) -> Iterator[WholeImage | UndecodableImage]:
    """The images in order, each with a long side of `long_side` pixels, its proportions kept; bilinear, antialiased.

    Args:
        source: images of any size.
        sample_ids: which ones.
        long_side: in pixels; smaller images are enlarged.
        num_threads: that decode ahead of the caller.

    Yields:
        An image, or the reason why it does not decode.
    """
    waiting: deque[Future[WholeImage | UndecodableImage]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for sample_id in sample_ids:
            waiting.append(pool.submit(_load, source, sample_id, long_side))
            if len(waiting) > num_threads * _IMAGES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _load(source: ImageSource, sample_id: int, long_side: int) -> WholeImage | UndecodableImage:
    try:
        image = decode_image(source.read(sample_id))
    except UndecodableImage as error:
        return error
    height, width = image.shape[:2]
    factor = long_side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    pixels = torch.from_numpy(image[None])
    if size != (height, width):
        resized = F.interpolate(pixels.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
        pixels = resized.permute(0, 2, 3, 1)
    return WholeImage(pixels, factor)
