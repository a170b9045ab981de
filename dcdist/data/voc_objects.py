"""The objects of VOC's images: boxes from Annotations/*.xml, masks of classes from SegmentationClass/*.png.

Whatever is damaged is a UsageError that names the file and the entry. Shapes: n objects of an image, H x W pixels.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dcdist.data.voc import CLASSES, VocImage
from dcdist.errors import UsageError

IGNORED = 255  # in a mask: the border between objects, and what is hard to tell
NUM_REGIONS = len(CLASSES) + 1  # values of a mask: 0 is the background, 1 the first class
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObjects:
    """What an annotation says."""

    classes: np.ndarray[Any, Any]  # int64 [n], indices of CLASSES
    boxes: np.ndarray[Any, Any]  # float64 [n, 4]: xmin, ymin, xmax, ymax; pixels count from 1, the last one included
    difficult: np.ndarray[Any, Any]  # bool [n]


def read_objects(image: VocImage, height: int, width: int) -> VocObjects:
    """The objects of an image of that size.

    Raises:
        UsageError: no annotation, damaged XML, a size that is not the image's, an unknown class, a box that is not
            within the image.
    """
    file = image.annotation
    root = _parse(image)
    size = tuple(_number(root, f"size/{name}", str(file)) for name in ("width", "height"))
    if size != (width, height):
        raise UsageError(f"{file}: size is {size[0]:g} x {size[1]:g}, but {image.picture} is {width} x {height}")
    classes, boxes, difficult = [], [], []
    for number, entry in enumerate(root.findall("object"), start=1):
        where = f"{file}, object {number}"
        name = (entry.findtext("name") or "").strip()
        if name not in CLASSES:
            raise UsageError(f"{where}: class {name!r} is unknown; known: {', '.join(CLASSES)}")
        where += f" ({name})"
        hard = (entry.findtext("difficult") or "0").strip()  # left out by some annotations of VOC, and then 0
        if hard not in ("0", "1"):
            raise UsageError(f"{where}: difficult is {hard!r}; expected 0 or 1")
        box = [_number(entry, f"bndbox/{corner}", where) for corner in _CORNERS]
        if not (1 <= box[0] <= box[2] <= width and 1 <= box[1] <= box[3] <= height):
            shown = ", ".join(f"{corner} {value:g}" for corner, value in zip(_CORNERS, box, strict=True))
            raise UsageError(
                f"{where}: the box ({shown}) is not within the image of {width} x {height} pixels, which count from 1"
            )
        classes.append(CLASSES.index(name))
        boxes.append(box)
        difficult.append(hard == "1")
    return VocObjects(
        np.array(classes, np.int64), np.array(boxes, np.float64).reshape(-1, 4), np.array(difficult, bool)
    )


def read_mask(image: VocImage, height: int, width: int) -> np.ndarray[Any, Any]:
    """The classes of an image's pixels: uint8 [H, W], 0 background, 1 to 20 classes, IGNORED.

    Raises:
        UsageError: no mask, a damaged one, of another size, or with other values.
    """
    file = image.mask
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of metadata, as when images are decoded
            with Image.open(file) as picture:
                mode = picture.mode
                mask = np.array(picture)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
        raise UsageError(f"{file} is no mask that decodes: {error}") from error
    if mode not in ("P", "L"):
        raise UsageError(f"{file} has mode {mode}: expected a palette PNG, whose pixels are numbers of classes")
    if mask.shape != (height, width):
        raise UsageError(
            f"{file} is {mask.shape[1]} x {mask.shape[0]} pixels, but {image.picture} is {width} x {height}"
        )
    unknown = sorted({*np.unique(mask).tolist()} - {*range(NUM_REGIONS), IGNORED})
    if unknown:
        shown = ", ".join(map(str, unknown[:5]))
        raise UsageError(f"{file} has pixels of value {shown}; expected 0 to {NUM_REGIONS - 1} and {IGNORED}")
    return mask


class _WithoutDtd(ElementTree.TreeBuilder):
    """Refuses declarations, by which a small file could grow without limit or name other files."""

    def doctype(self, *_: object) -> None:
        raise ValueError("a document type declaration (DOCTYPE) is refused")


def _parse(image: VocImage) -> ElementTree.Element:
    file = image.annotation
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_WithoutDtd()))
    except OSError as error:
        raise UsageError(f"{file} cannot be read, the annotation of {image.picture}: {error}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise UsageError(f"{file} is damaged: {error}") from error
    if root.tag != "annotation":
        raise UsageError(f"{file} is no annotation: its root is <{root.tag}>")
    return root


def _number(entry: ElementTree.Element, path: str, where: str) -> float:
    text = entry.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: {path} is {'missing' if text is None else repr(text)}; expected a number")
    return value
