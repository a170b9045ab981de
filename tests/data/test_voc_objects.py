"""Annotations and masks: what they say, and what is said about damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdist.data.voc import CLASSES, VocImage
from dcdist.data.voc_objects import read_mask, read_objects
from dcdist.errors import UsageError
from tests.voc_devkit import BOX, HEIGHT, WIDTH, annotation, described, make_voc


@pytest.fixture
def image(tmp_path: Path) -> VocImage:
    """The first test image, which shows an aeroplane."""
    return VocImage(make_voc(tmp_path) / "VOC2007", "000041")


def test_objects_are_read_as_they_are_written(image: VocImage) -> None:
    boxes = [(1, 1, WIDTH, HEIGHT), (3, 5, 3, 5), (2.5, 1, 7.25, 9)]
    objects = [described("dog", boxes[0]), described("person", boxes[1], 1), described("dog", boxes[2], None)]
    part = "<part><name>head</name><bndbox><xmin>900</xmin></bndbox></part>"
    objects[1] = objects[1].replace("</object>", f"{part}</object>")
    image.annotation.write_text(annotation(image.name, "".join(objects)))
    found = read_objects(image, HEIGHT, WIDTH)
    assert [CLASSES[index] for index in found.classes] == ["dog", "person", "dog"]
    assert found.boxes.tolist() == [list(box) for box in boxes]
    assert found.difficult.tolist() == [False, True, False]


def test_an_image_without_objects_has_none(image: VocImage) -> None:
    image.annotation.write_text(annotation(image.name, ""))
    found = read_objects(image, HEIGHT, WIDTH)
    assert (found.classes.shape, found.boxes.shape, found.difficult.shape) == ((0,), (0, 4), (0,))


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]><annotation>&c;</annotation>'
OTHER_FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><size>", "is damaged: no element found"),
        ("", "is damaged"),
        (BOMB, "is damaged: a document type declaration"),
        (OTHER_FILE, "is damaged: a document type declaration"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "is damaged"),
        ("<html/>", "is no annotation: its root is <html>"),
        ("<annotation/>", "size/width is missing; expected a number"),
        (annotation("x", "", width=47), "size is 47 x 40, but .*000041.jpg is 48 x 40"),
        (annotation("x", described("unicorn")), r"object 1: class 'unicorn' is unknown; known: aeroplane, bicycle"),
        (annotation("x", described("dog") + described("cat", difficult=2)), r"object 2 \(cat\): difficult is '2'"),
        (
            annotation("x", described("dog", (0, 1, 9, 9))),
            r"object 1 \(dog\): the box \(xmin 0, .* not within the image",
        ),
        (annotation("x", described("dog", (1, 1, 49, 9))), r"object 1 \(dog\): the box .*xmax 49"),
        (annotation("x", described("dog", (1, 1, 9, 41))), r"object 1 \(dog\): the box .*ymax 41"),
        (annotation("x", described("dog", (9, 1, 8, 9))), r"object 1 \(dog\): the box \(xmin 9, ymin 1, xmax 8"),
        (annotation("x", described("dog", (1, 1, float("nan"), 9))), r"\(dog\): bndbox/xmax is 'nan'; expected a num"),
        (annotation("x", "<object><name>dog</name></object>"), r"\(dog\): bndbox/xmin is missing"),
    ],
)
def test_damage_of_an_annotation_is_named(image: VocImage, text: str, message: str) -> None:
    image.annotation.write_text(text)
    with pytest.raises(UsageError, match=rf"Annotations/000041\.xml.*{message}"):
        read_objects(image, HEIGHT, WIDTH)


def test_an_annotation_that_is_not_there_is_named(image: VocImage) -> None:
    image.annotation.unlink()
    with pytest.raises(UsageError, match=r"000041\.xml cannot be read, the annotation of .*000041\.jpg"):
        read_objects(image, HEIGHT, WIDTH)


def test_a_mask_is_read_as_numbers_not_as_colours(image: VocImage) -> None:
    mask = read_mask(image, HEIGHT, WIDTH)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[BOX[1] - 1 : BOX[3], BOX[0] - 1 : BOX[2]] = 255
    expected[BOX[1] : BOX[3] - 1, BOX[0] : BOX[2] - 1] = 1
    assert mask.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("mode", "size", "value", "message"),
    [
        ("RGB", (WIDTH, HEIGHT), (1, 1, 1), "has mode RGB: expected a palette PNG"),
        ("L", (WIDTH, HEIGHT), 21, "has pixels of value 21; expected 0 to 20 and 255"),
        ("L", (HEIGHT, WIDTH), 1, "is 40 x 48 pixels, but .*000041.jpg is 48 x 40"),
    ],
)
def test_a_wrong_mask_is_named(image: VocImage, mode: str, size: tuple[int, int], value: int, message: str) -> None:
    Image.new(mode, size, value).save(image.mask)
    with pytest.raises(UsageError, match=rf"SegmentationClass/000041\.png {message}"):
        read_mask(image, HEIGHT, WIDTH)


def test_a_damaged_or_missing_mask_is_named(image: VocImage) -> None:
    image.mask.write_bytes(image.mask.read_bytes()[:-30])
    with pytest.raises(UsageError, match=r"000041\.png is no mask that decodes"):
        read_mask(image, HEIGHT, WIDTH)
    image.mask.unlink()
    with pytest.raises(UsageError, match=r"000041\.png is no mask that decodes: .*No such file"):
        read_mask(image, HEIGHT, WIDTH)
