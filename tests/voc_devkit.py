"""A small data set in VOC's layout, all of whose content is known: each class is a colour."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dcdist.data.voc import CLASSES

WIDTH, HEIGHT = 48, 40
BOX = (9, 7, 40, 36)  # xmin, ymin, xmax, ymax; pixels count from 1, the last one included


def color(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index / len(CLASSES), 1.0, 0.5 + 0.5 * (index % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def annotation(name: str, objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"


def described(class_name: str, box: tuple[float, ...] = BOX, difficult: int | None = 0) -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{class_name}</name>{hard}<bndbox>{corners}</bndbox></object>"


def make_voc(root: Path, year: str = "2007", per_class: dict[str, int] | None = None) -> Path:
    """VOCdevkit below `root`: in each list so many images of each class, one object a grey picture; its folder."""
    devkit = root / "VOCdevkit"
    folder = devkit / f"VOC{year}"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    number = 0
    for list_name, count in (per_class or {"trainval": 2, "test": 1}).items():
        shown: dict[str, int] = {}
        for index in [index for _ in range(count) for index in range(len(CLASSES))]:
            number += 1
            name = f"{number:06d}"
            shown[name] = index
            write_image(folder, name, index)
        write_lists(folder, list_name, shown)
    return devkit


def write_image(folder: Path, name: str, index: int) -> None:
    picture, mask = Image.new("RGB", (WIDTH, HEIGHT), (127, 127, 127)), Image.new("P", (WIDTH, HEIGHT), 0)
    mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    corners = [BOX[0] - 1, BOX[1] - 1, BOX[2] - 1, BOX[3] - 1]  # Pillow includes the last pixel
    ImageDraw.Draw(picture).rectangle(corners, fill=color(index))
    ImageDraw.Draw(mask).rectangle(corners, fill=index + 1, outline=255)
    picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    mask.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, described(CLASSES[index])))


def write_lists(folder: Path, list_name: str, shown: dict[str, int]) -> None:
    for task in ("Main", "Segmentation"):
        (folder / "ImageSets" / task / f"{list_name}.txt").write_text("".join(f"{name}\n" for name in shown))
    for index, class_name in enumerate(CLASSES):
        lines = (f"{name} {1 if own == index else -1:2d}\n" for name, own in shown.items())
        (folder / "ImageSets" / "Main" / f"{class_name}_{list_name}.txt").write_text("".join(lines))
