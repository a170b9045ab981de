"""PASCAL VOC's folder layout: which images a set lists, and what is in them (Everingham et al., IJCV 2010).

Whatever is missing or damaged is a UsageError that names the file and the entry in it. Shapes: N images of a split,
C = 20 classes.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dcdist.data.decode import UndecodableImage, decode_image
from dcdist.data.location import TAR_SUFFIXES
from dcdist.errors import UsageError

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
PRESENT, DIFFICULT, ABSENT = 1, 0, -1  # of a class in an image; DIFFICULT: only as objects marked so

Task = Literal["Main", "Segmentation"]

_YEAR = re.compile(r"VOC(\d{4})")
_NAME = re.compile(r"[\w-]+")  # of an image: never a path


@dataclass(frozen=True)
class VocImage:
    """An image that a set lists; it pickles."""

    folder: Path  # VOCdevkit/VOC2007
    name: str  # 000012

    @property
    def picture(self) -> Path:
        return self.folder / "JPEGImages" / f"{self.name}.jpg"

    @property
    def annotation(self) -> Path:
        return self.folder / "Annotations" / f"{self.name}.xml"

    @property
    def mask(self) -> Path:
        return self.folder / "SegmentationClass" / f"{self.name}.png"

    def pixels(self) -> np.ndarray[Any, Any]:
        """uint8 [H, W, 3]. Raises UsageError where the file is no whole picture."""
        try:
            return decode_image(self.picture.read_bytes())
        except (UndecodableImage, OSError) as error:
            raise UsageError(f"{self.picture} does not decode: {error}") from error


@dataclass(frozen=True)
class VocSet:
    """A list of a year: ImageSets/TASK/NAME.txt."""

    folder: Path
    task: Task
    name: str

    @property
    def file(self) -> Path:
        return self.folder / "ImageSets" / self.task / f"{self.name}.txt"

    def images(self) -> list[VocImage]:
        """The images in the list's order.

        Raises:
            UsageError: no such list, a damaged or empty one, an image twice or not there.
        """
        if not self.file.is_file():
            known = sorted(path.stem for path in self.file.parent.glob("*.txt") if "_" not in path.stem)
            raise UsageError(f"{self.file} does not exist; lists of {self.folder}: {', '.join(known) or 'none'}")
        found: dict[str, VocImage] = {}
        for number, (name,) in _entries(self.file, "one image"):
            image = VocImage(self.folder, name)
            if name in found:
                raise UsageError(f"{self.file} line {number}: image {name} is listed twice")
            if not image.picture.is_file():
                raise UsageError(f"{self.file} line {number} lists {name}, but {image.picture} does not exist")
            found[name] = image
        if not found:
            raise UsageError(f"{self.file} lists no image")
        return list(found.values())

    def labels(self) -> np.ndarray[Any, Any]:
        """int8 [N, C] of PRESENT, DIFFICULT and ABSENT, from ImageSets/Main/CLASS_NAME.txt.

        Raises:
            UsageError: a list is missing or damaged, or lists other images than the set.
        """
        rows = {image.name: row for row, image in enumerate(self.images())}
        labels = np.zeros((len(rows), len(CLASSES)), np.int8)
        for column, class_name in enumerate(CLASSES):
            file = self.file.with_name(f"{class_name}_{self.name}.txt")
            seen: set[str] = set()
            for number, (name, label) in _entries(file, "an image and 1, 0 or -1", columns=2):
                if label not in ("1", "0", "-1"):
                    raise UsageError(f"{file} line {number}: {label!r} for image {name}; expected 1, 0 or -1")
                if name not in rows:
                    raise UsageError(f"{file} line {number}: image {name} is not in {self.file}")
                if name in seen:
                    raise UsageError(f"{file} line {number}: image {name} is listed twice")
                seen.add(name)
                labels[rows[name], column] = int(label)
            if len(seen) < len(rows):
                missing = next(name for name in rows if name not in seen)
                more = len(rows) - len(seen) - 1
                others = f" and {more} more" if more else ""
                raise UsageError(f"{file} lacks image {missing}{others} of {self.file}")
        return labels


@dataclass(frozen=True)
class VocSplit:
    """Images of one or several lists, one after the other."""

    sets: tuple[VocSet, ...]

    def __str__(self) -> str:
        return ", ".join(f"{part.folder.name}/{part.name}" for part in self.sets)

    def images(self) -> list[VocImage]:
        """As VocSet.images."""
        return [image for part in self.sets for image in part.images()]

    def labels(self) -> np.ndarray[Any, Any]:
        """As VocSet.labels; besides UsageError where a class has no image in which it is present, naming its list."""
        labels = np.concatenate([part.labels() for part in self.sets])
        for class_name, column in zip(CLASSES, labels.T, strict=True):
            if not (column == PRESENT).any():
                files = " and ".join(str(part.file.with_name(f"{class_name}_{part.name}.txt")) for part in self.sets)
                raise UsageError(
                    f"{files}: no image has label 1, so there is nothing to learn or to score of class {class_name}; "
                    "take a list with all classes"
                )
        return labels


@dataclass(frozen=True)
class Voc:
    """One or several years of VOC: the folder of each."""

    folders: Mapping[str, Path]  # "2007": VOCdevkit/VOC2007

    def year(self, preferred: str) -> str:
        """The preferred year where it is there, else the latest."""
        return preferred if preferred in self.folders else max(self.folders)

    def split(self, wanted: str, task: Task, year: str) -> VocSplit:
        """The lists that a person names: NAME of the given year, or YEAR/NAME, several with commas.

        Raises:
            UsageError: no such year, or not written so.
        """
        sets = []
        for entry in wanted.split(","):
            own_year, _, name = entry.strip().rpartition("/")
            own_year = (own_year or year).removeprefix("VOC")
            if own_year not in self.folders:
                raise UsageError(f"split {wanted!r} names the year {own_year}; here are {', '.join(self.folders)}")
            if not _NAME.fullmatch(name):
                raise UsageError(f"split {wanted!r} is not written as trainval or 2007/trainval,2012/trainval")
            sets.append(VocSet(self.folders[own_year], task, name))
        return VocSplit(tuple(sets))


@contextmanager
def open_voc(data: str) -> Iterator[Voc]:
    """Finds VOC's years; a tar is unpacked into a temporary folder, which is gone after the block.

    Args:
        data: VOCdevkit, one of its years (VOCdevkit/VOC2007), a folder that holds VOCdevkit, or a tar of any of these.

    Raises:
        UsageError: nothing there, or nothing of this layout; a tar that is damaged or has unsafe members.
    """
    path = Path(data)
    if path.is_dir():
        yield _find(path, data)
    elif path.is_file() and path.name.endswith(TAR_SUFFIXES):
        with tempfile.TemporaryDirectory(prefix="dcdist-voc-") as folder:
            _unpack(path, folder)
            yield _find(Path(folder), data)
    else:
        raise UsageError(
            f"--data={data!r} is neither a local folder nor a tar file ({', '.join(TAR_SUFFIXES)}): expected "
            "VOCdevkit, VOCdevkit/VOC2007, a folder that holds VOCdevkit, or a tar of it"
        )


def examine_pictures(images: Sequence[VocImage]) -> list[tuple[int, int]]:
    """Decodes every image once, before hours are spent on training: heights and widths in pixels.

    Raises:
        UsageError: an image does not decode; names it.
    """
    shapes = []
    for image in images:
        height, width, _ = image.pixels().shape
        shapes.append((height, width))
    return shapes


def _unpack(path: Path, folder: str) -> None:
    try:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{path} cannot be unpacked: {error}") from error


def _find(path: Path, data: str) -> Voc:
    for folder in (path, path / "VOCdevkit"):
        if _is_year(folder):
            match = _YEAR.fullmatch(folder.resolve().name)
            return Voc({match[1] if match else folder.resolve().name: folder})
        years = {
            match[1]: child
            for child in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if (match := _YEAR.fullmatch(child.name)) and _is_year(child)
        }
        if years:
            return Voc(years)
    raise UsageError(
        f"--data={data!r} has not the layout of VOC: expected folders JPEGImages, Annotations and ImageSets in it, in "
        "VOC2007 or VOC2012 below it, or below VOCdevkit"
    )


def _is_year(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() and (folder / "ImageSets").is_dir()


def _entries(file: Path, expected: str, columns: int = 1) -> Iterator[tuple[int, list[str]]]:
    """The lines of a list that are not empty: number from 1, and columns, of which the first is an image's name."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != columns or not _NAME.fullmatch(cells[0]):
            raise UsageError(f"{file} line {number}: {line!r}; expected {expected} a line")
        yield number, cells
