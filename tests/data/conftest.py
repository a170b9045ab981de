"""Small images and the same data set in every form that the data layer reads."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """A function (image, kind, **options) -> the bytes that Pillow writes."""
    return _encode


@pytest.fixture(scope="session")
def make_pixels() -> Callable[..., np.ndarray]:
    """A function (height, width, seed) -> a smooth picture with some texture, uint8 [height, width, 3]."""

    def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        return np.clip(smooth + generator.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)

    return pixels


@pytest.fixture(scope="session")
def make_jpeg(make_pixels: Callable[..., np.ndarray]) -> Callable[..., bytes]:
    """A function (height, width, seed) -> a JPEG of that picture."""
    return lambda height=24, width=32, seed=0: _encode(Image.fromarray(make_pixels(height, width, seed)), "JPEG")


@pytest.fixture(scope="session")
def files(make_jpeg: Callable[..., bytes]) -> dict[str, bytes]:
    """Seven images by path, in two splits and two classes, sorted."""
    names = ["test/cat/0.jpg", "test/dog/1.jpg", *(f"train/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(2))]
    images = {name: make_jpeg(24 + seed, 32, seed) for seed, name in enumerate(sorted([*names, "train/dog/9.JPEG"]))}
    assert list(images) == sorted(images)
    return images


@pytest.fixture
def image_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    root = tmp_path / "folder"
    for name, image in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (root / "README.txt").write_text("not an image")
    (root / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    return root


@pytest.fixture
def parquet_file(tmp_path: Path, files: dict[str, bytes]) -> Path:
    columns = {
        "image": list(files.values()),
        "label": pa.array([int("dog" in name) for name in files], pa.int64()),
        "label_name": [name.split("/")[1] for name in files],
        "split": [name.split("/")[0] for name in files],
        "path": list(files),
        "something_else": [0.5] * len(files),
    }
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@pytest.fixture
def tar_file(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "images.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {
            "./notes.txt": b"no image",
            **{f"./{name}": image for name, image in files.items()},
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of packed shards for each test."""
    monkeypatch.setenv("DCDIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
