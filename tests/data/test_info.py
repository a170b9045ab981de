"""What `data info` says, against sets that were made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dcdist.data.digits import make_digits
from dcdist.data.info import Spread, info
from dcdist.data.pack import pack
from dcdist.data.source import open_source
from dcdist.errors import UsageError


@pytest.fixture
def mixed(image_folder, encode, make_jpeg):
    (image_folder / "train" / "dog" / "half.jpg").write_bytes(make_jpeg()[:-40])
    (image_folder / "train" / "dog" / "none.png").write_bytes(b"")
    grey = Image.fromarray(np.zeros((100, 10), np.uint8))
    (image_folder / "train" / "dog" / "grey.png").write_bytes(encode(grey, "PNG"))
    return image_folder


@pytest.mark.parametrize("form", ["folder", "packed", "s3"])
def test_findings(mixed, tmp_path, form, request):
    root = {"folder": str(mixed), "packed": str(tmp_path / "packed"), "s3": "s3://bucket/packed"}[form]
    if form == "s3":
        request.getfixturevalue("s3_server")
    if form != "folder":
        pack(mixed, root)
    found = info(root)
    assert found.kind == ("folder" if form == "folder" else "packed")
    assert found.num_images == 10
    assert found.split_counts == {"test": 2, "train": 8}
    assert found.label_counts == {"cat": 3, "dog": 7}
    assert found.formats == {"JPEG": 7, "PNG": 1}
    assert found.modes == {"L": 1, "RGB": 7}
    assert found.widths == Spread(10, 32.0, 32)
    assert found.heights == Spread(24, 27.5, 100)  # 24 to 30 and 100
    assert list(found.undecodable) == ["train/dog/half.jpg", "train/dog/none.png"]
    assert found.undecodable["train/dog/none.png"] == "the file is empty"
    sizes = open_source(root).sizes
    assert found.encoded_bytes == Spread(0, float(np.median(sizes)), int(sizes.max()))
    assert found.num_bytes == sizes.sum()
    assert found.fingerprint == open_source(root).fingerprint()


def test_lines(mixed):
    found = info(mixed)
    assert found.lines() == [
        f"{mixed} (folder)",
        f"images       10 ({found.num_bytes:,} bytes)",
        "splits       test 2, train 8",
        "labels       cat 3, dog 7",
        "formats      JPEG 7, PNG 1",
        "modes        L 1, RGB 7",
        f"bytes        0 to {found.encoded_bytes.largest:,}, median {found.encoded_bytes.median:,.6g}",
        "width        10 to 32, median 32",
        "height       24 to 100, median 27.5",
        "undecodable  2",
        "  train/dog/half.jpg: JPEG: Premature end of JPEG file",
        "  train/dog/none.png: the file is empty",
        f"fingerprint  {found.fingerprint}",
    ]


def test_unlabelled_and_wholly_undecodable(tmp_path):
    for number in range(25):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"no picture")
    lines = info(tmp_path).lines()
    assert lines[2:6] == ["splits       none", "labels       none", "formats      none", "modes        none"]
    assert lines[6:10] == [
        "bytes        10 to 10, median 10",
        "width        none",
        "height       none",
        "undecodable  25",
    ]
    assert lines[-2] == "  and 5 more"
    assert len(lines) == 10 + 20 + 2


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        info(tmp_path / "nowhere")


def test_digits(tmp_path):
    first, second = (make_digits(tmp_path / name) for name in ("one", "two"))
    assert first == second
    assert [(tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
            for name in ("shard-00000.arrow", "dcdist-pack.json")] == [True, True]  # fmt: skip
    source = open_source(tmp_path / "one", split="train")
    assert source.keys[0] == "digits/0000.png"
    assert source.keys[1796] == "digits/1796.png"
    assert np.bincount(source.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    found = info(tmp_path / "one")
    assert found.modes == {"L": 1797}
    assert found.widths == found.heights == Spread(8, 8.0, 8)
    assert not found.undecodable


def test_digits_pixels_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    from dcdist.data.decode import decode_image

    make_digits(tmp_path / "digits")
    source = open_source(tmp_path / "digits")
    values = load_digits().images
    for sample_id in (0, 7, 1796):
        expected = np.rint(values[sample_id] * 255 / 16)
        assert np.array_equal(decode_image(source.read(sample_id))[..., 0], expected)
    with pytest.raises(UsageError, match="holds packed shards already"):
        make_digits(tmp_path / "digits")
