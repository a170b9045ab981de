"""Whole images at a long side: sizes, crops, order, names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from dcdist.data.decode import UndecodableImage
from dcdist.data.source import open_source
from dcdist.data.whole_images import WholeImage, ids_by_name, load_whole_images
from dcdist.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, make_pixels: Callable[..., np.ndarray]) -> Path:
    for name, height, width in (("wide", 30, 40), ("tall", 80, 50), ("thin", 2, 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(make_pixels(height, width)).save(tmp_path / "images" / name / f"{name}_000000.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"<html>302 Found</html>")
    return tmp_path / "images"


@pytest.mark.parametrize("num_threads", [1, 3])
def test_images_come_in_order_with_their_long_side(folder: Path, num_threads: int) -> None:
    source = open_source(folder)
    ids = ids_by_name(source, str(folder))
    assert set(ids) == {"broken", "wide_000000", "tall_000000", "thin_000000"}
    asked = ["wide_000000", "broken", "tall_000000", "thin_000000"] * 5
    loaded = list(load_whole_images(source, [ids[name] for name in asked], 64, num_threads))
    sizes = [tuple(image.pixels.shape) if isinstance(image, WholeImage) else str(image) for image in loaded]
    assert [sizes[0], *sizes[2:4]] == [(1, 48, 64, 3), (1, 64, 40, 3), (1, 1, 64, 3)]
    assert sizes[1].startswith("no known image format")
    assert isinstance(loaded[1], UndecodableImage)
    assert sizes == sizes[:4] * 5


def test_pixels_are_those_of_the_antialiased_resize(folder: Path) -> None:
    source = open_source(folder)
    ids = ids_by_name(source, str(folder))
    original = torch.from_numpy(np.array(Image.open(folder / "tall" / "tall_000000.png")))
    for long_side in (33, 200):
        (image,) = load_whole_images(source, [ids["tall_000000"]], long_side, 1)
        assert isinstance(image, WholeImage)
        height, width = image.pixels.shape[1:3]
        wanted = reference.resize(original.permute(2, 0, 1), [height, width], antialias=True)
        assert (image.pixels[0].int() - wanted.permute(1, 2, 0).int()).abs().max() <= 1
    (image,) = load_whole_images(source, [ids["tall_000000"]], 80, 1)
    assert isinstance(image, WholeImage)
    assert torch.equal(image.pixels[0], original)


def test_a_box_is_cut_out_after_resizing() -> None:
    """Of 80 x 60 at half the size: 12.6, 7.4, 60.6, 50 become 6, 4, 30, 25."""
    image = WholeImage(torch.arange(30 * 40).view(1, 30, 40, 1).expand(1, 30, 40, 3), 0.5)
    assert torch.equal(image.crop((12.6, 7.4, 60.6, 50.0)), image.pixels[:, 4:25, 6:30])
    assert torch.equal(image.crop((-5.0, -5.0, 500.0, 500.0)), image.pixels), "what lies outside is left out"
    with pytest.raises(ValueError, match=r"\[80.0, 0.0, 90.0, 20.0\] holds no pixel of the image, which is 80 x 60"):
        image.crop((80.0, 0.0, 90.0, 20.0))


def test_two_images_of_one_name_are_refused(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "wide_000000.jpg").write_bytes((folder / "wide" / "wide_000000.png").read_bytes())
    with pytest.raises(UsageError, match=r"two images named 'wide_000000', other/wide_000000.jpg and wide/wide_0"):
        ids_by_name(open_source(folder), str(folder))
