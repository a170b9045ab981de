"""VOC's layout: where it is found, what its lists say, and what is said about damage."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dcdist.data.voc import CLASSES, Voc, VocImage, VocSet, examine_pictures, open_voc
from dcdist.errors import UsageError
from tests.voc_devkit import HEIGHT, WIDTH, make_voc


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A year that a test may damage."""
    return make_voc(tmp_path) / "VOC2007"


def found_in(path: Path) -> list[str]:
    with open_voc(str(path)) as voc:
        split = voc.split("trainval", "Main", voc.year("2007"))
        assert str(split) == "VOC2007/trainval"
        return [image.name for image in split.images() if image.picture.is_file()]


def message_of(path: Path) -> str:
    with pytest.raises(UsageError) as caught, open_voc(str(path)):
        pass
    return str(caught.value)


def test_a_year_the_devkit_its_folder_and_tars_of_them_are_the_same(devkit: Path, tmp_path: Path) -> None:
    names = [f"{number:06d}" for number in range(1, 41)]
    for folder in (devkit, devkit / "VOC2007", devkit.parent):
        assert found_in(folder) == names
    for path, stored_as in ((devkit, "VOCdevkit"), (devkit / "VOC2007", "VOC2007")):
        for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
            archive = tmp_path / f"{stored_as}{suffix}"
            with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
                tar.add(path, stored_as)
            assert found_in(archive) == names


def test_an_unpacked_tar_is_gone_afterwards(devkit: Path, tmp_path: Path) -> None:
    archive = tmp_path / "voc.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(devkit, "VOCdevkit")
    with open_voc(str(archive)) as voc:
        folder = voc.folders["2007"]
        assert folder.is_dir()
    assert not folder.exists()


def test_a_tar_that_would_write_elsewhere_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "voc.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("../escaped.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    assert f"{archive} cannot be unpacked" in message_of(archive)
    assert not list(tmp_path.parent.glob("**/escaped.txt"))


def test_a_truncated_tar_is_named(devkit: Path, tmp_path: Path) -> None:
    archive = tmp_path / "voc.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(devkit, "VOCdevkit")
    archive.write_bytes(archive.read_bytes()[:2000])
    assert f"{archive} cannot be unpacked" in message_of(archive)


def test_other_data_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    assert "has not the layout of VOC" in message_of(tmp_path)
    assert "neither a local folder nor a tar" in message_of(tmp_path / "nothing")
    file = tmp_path / "voc.zip"
    file.write_bytes(b"PK")
    assert "neither a local folder nor a tar" in message_of(file)


def test_several_years(tmp_path: Path) -> None:
    make_voc(tmp_path / "a", "2007")
    other = make_voc(tmp_path / "b", "2012", {"train": 1, "val": 1})
    (tmp_path / "a/VOCdevkit/VOC2012").symlink_to(other / "VOC2012")
    with open_voc(str(tmp_path / "a/VOCdevkit")) as voc:
        assert (voc.year("2007"), voc.year("2012"), voc.year("1999")) == ("2007", "2012", "2012")
        both = voc.split("trainval, 2012/train", "Main", "2007")
        assert str(both) == "VOC2007/trainval, VOC2012/train"
        assert [image.folder.name for image in both.images()] == ["VOC2007"] * 40 + ["VOC2012"] * 20
        assert both.labels().shape == (60, 20)
        with pytest.raises(UsageError, match="names the year 2008; here are 2007, 2012"):
            voc.split("2008/train", "Main", "2007")
        with pytest.raises(UsageError, match=r"split 'train \+ val' is not written as"):
            voc.split("train + val", "Main", "2007")


def test_labels_are_those_of_the_lists(own: Path) -> None:
    file = own / "ImageSets/Main/bird_test.txt"
    file.write_text(file.read_text().replace("000044 -1", "000044  0"))
    labels = VocSet(own, "Main", "test").labels()
    expected = 2 * np.eye(20, dtype=int) - 1  # image i shows class i
    expected[3, CLASSES.index("bird")] = 0
    assert labels.tolist() == expected.tolist()


def test_a_list_that_is_not_there_names_those_that_are(devkit: Path) -> None:
    with pytest.raises(UsageError, match=r"Main/val\.txt does not exist; lists of .*VOC2007: test, trainval$"):
        VocSet(devkit / "VOC2007", "Main", "val").images()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("000001\n000002\n000001\n", r"test\.txt line 3: image 000001 is listed twice"),
        ("000001\n\n999999\n", r"test\.txt line 3 lists 999999, but .*JPEGImages/999999\.jpg does not exist"),
        ("../../etc/passwd\n", r"test\.txt line 1: '\.\./\.\./etc/passwd'; expected one image a line"),
        ("000001 1\n", r"test\.txt line 1: '000001 1'; expected one image a line"),
        ("\n", r"test\.txt lists no image"),
        ("\udcff", r"test\.txt cannot be read"),
    ],
)
def test_damage_of_a_list_is_named(own: Path, lines: str, message: str) -> None:
    (own / "ImageSets/Main/test.txt").write_text(lines, errors="surrogateescape")
    with pytest.raises(UsageError, match=message):
        VocSet(own, "Main", "test").images()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("000041 -1\n", "", r"car_test\.txt lacks image 000041 of .*test\.txt"),
        ("000041 -1\n000042 -1\n", "", r"car_test\.txt lacks image 000041 and 1 more of"),
        ("000041 -1", "000041 2", r"car_test\.txt line 1: '2' for image 000041; expected 1, 0 or -1"),
        ("000041 -1", "000041", r"car_test\.txt line 1: '000041'; expected an image and 1, 0 or -1"),
        ("000041 -1", "000001 -1", r"car_test\.txt line 1: image 000001 is not in .*test\.txt"),
        ("000041 -1", "000042 -1", r"car_test\.txt line 2: image 000042 is listed twice"),
    ],
)
def test_damage_of_a_class_list_is_named(own: Path, old: str, new: str, message: str) -> None:
    file = own / "ImageSets/Main/car_test.txt"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=message):
        VocSet(own, "Main", "test").labels()


def test_a_class_without_an_image_is_named(own: Path) -> None:
    file = own / "ImageSets/Main/sheep_test.txt"
    file.write_text(file.read_text().replace(" 1\n", " 0\n"))
    split = Voc({"2007": own}).split("test", "Main", "2007")
    with pytest.raises(UsageError, match=r"sheep_test\.txt: no image has label 1, so there is nothing to learn"):
        split.labels()


def test_a_class_list_that_is_not_there_is_named(own: Path) -> None:
    (own / "ImageSets/Main/dog_test.txt").unlink()
    with pytest.raises(UsageError, match=r"dog_test\.txt cannot be read: .*No such file"):
        VocSet(own, "Main", "test").labels()


def test_pictures_are_examined_and_a_damaged_one_is_named(own: Path) -> None:
    images = VocSet(own, "Main", "test").images()
    assert examine_pictures(images) == [(HEIGHT, WIDTH)] * 20
    images[7].picture.write_bytes(images[7].picture.read_bytes()[:400])
    with pytest.raises(UsageError, match=r"JPEGImages/000048\.jpg does not decode: JPEG: "):
        examine_pictures(images)


def test_an_image_pickles(own: Path) -> None:
    image = VocImage(own, "000001")
    assert pickle.loads(pickle.dumps(image)) == image


def test_the_excerpt_of_the_real_photographs(shared_data: Path) -> None:
    """Present, absent and difficult classes are what the annotations say."""
    from dcdist.data.voc_objects import read_objects

    with open_voc(str(shared_data / "voc2007_excerpt.tar")) as voc:
        split = voc.split("test", "Main", voc.year("2007"))
        images, labels = split.images(), split.labels()
        assert labels.shape == (100, 20)
        assert (labels == 1).sum(0).min() == 6, "as its README says"
        for image, row in zip(images, labels, strict=True):
            objects = read_objects(image, *image.pixels().shape[:2])
            expected = np.full(20, -1)
            expected[objects.classes[objects.difficult]] = 0
            expected[objects.classes[~objects.difficult]] = 1
            assert row.tolist() == expected.tolist()
