"""RUN/examples.parquet: made from the run's data, kept, and never of other data."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcdist.data.pack import pack
from dcdist.data.source import open_source
from dcdist.report import examples
from dcdist.report.examples import EXAMPLES, SIDE, Examples, find_examples
from dcdist.report.history import read_history
from dcdist.run_directory import RunDirectory
from dcdist.storage import LocalStorage
from tests.report.made_runs import make_run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images of two classes; one of them does not decode, one is large and wide."""
    root = tmp_path / "images"
    for number in range(6):
        folder = root / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = (400, 200) if number == 4 else (8, 8)
        Image.new("RGB", size, (40 * number, 0, 0)).save(folder / f"{number}.png")
    (root / "odd" / "5.png").write_bytes(b"no image")
    return root


@pytest.fixture
def trained(tmp_path: Path, images: Path) -> RunDirectory:
    """A run that was trained on them."""
    return RunDirectory(str(make_run(tmp_path / "run", images=images)))


def find(run: RunDirectory, wanted: list[int], here: Path | None = None, configured: Path | None = None) -> Examples:
    """The thumbnails; `here` as --data names the images, `configured` as the run's config does."""
    data = {"root": str(configured or "/nowhere")}
    return find_examples(run, read_history(run), wanted, data, here and str(here))


def size_of(thumbnail: bytes | None) -> tuple[int, int]:
    assert thumbnail is not None
    with Image.open(io.BytesIO(thumbnail)) as image:
        return image.size


def test_thumbnails_are_made_and_kept(trained: RunDirectory, images: Path) -> None:
    """sample_ids follow the keys: even/0, even/2, even/4, odd/1, odd/3, odd/5."""
    found = find(trained, [0, 2, 5], here=images)
    assert size_of(found.thumbnails[0]) == (8, 8)
    assert size_of(found.thumbnails[2]) == (SIDE, SIDE // 2)
    assert found.thumbnails[5] is None  # it does not decode
    assert found.label_names == ["even", "odd"]
    assert found.remark == ""
    table = pq.read_table(trained.storage.local_path(EXAMPLES))
    assert table.column_names == ["sample_id", "thumbnail"]
    assert table["sample_id"].to_pylist() == [0, 2, 5]
    assert find(trained, [5, 0]) == found, "what is kept needs no data"


def test_small_images_are_kept_as_they_are(trained: RunDirectory, images: Path) -> None:
    found = find(trained, [3], here=images)
    with Image.open(io.BytesIO(found.thumbnails[3] or b"")) as image:
        assert np.asarray(image.convert("RGB")).reshape(-1, 3).tolist() == [[40, 0, 0]] * 64


def test_another_clustering_has_other_images(trained: RunDirectory, images: Path) -> None:
    find(trained, [0, 1], here=images)
    assert set(find(trained, [1, 2], here=images).thumbnails) == {1, 2}
    assert set(find(trained, [1, 2]).thumbnails) == {1, 2}


def test_data_that_are_not_here_cost_the_missing_images_alone(trained: RunDirectory, images: Path) -> None:
    find(trained, [0, 1], here=images)
    found = find(trained, [1, 2])
    assert set(found.thumbnails) == {0, 1}
    assert found.label_names == ["even", "odd"]
    assert found.remark.startswith("Only the 1 that examples.parquet holds are shown: the run's images cannot be read.")
    assert "/nowhere does not exist" in found.remark
    assert found.remark.endswith("Name the place where the data lie here by --data.")


def test_nothing_is_known_of_the_data(trained: RunDirectory) -> None:
    found = find_examples(trained, read_history(trained), [0], {})
    assert found.thumbnails == {}
    assert found.remark.startswith("They are not shown: the run's images cannot be read. The run's config does not say")


def test_images_of_other_data_are_not_shown(trained: RunDirectory, images: Path) -> None:
    (images / "odd" / "7.png").write_bytes(b"one more")
    found = find(trained, [0], here=images)
    assert found.thumbnails == {}
    assert f"{images} holds other images than those that the run was trained on" in found.remark
    assert not trained.storage.exists(EXAMPLES)


def test_without_a_fingerprint_no_image_is_trusted(trained: RunDirectory, images: Path) -> None:
    (Path(trained.storage.url()) / "attempts" / "0001.json").write_text(json.dumps({"attempt": 1}))
    found = find(trained, [0], here=images)
    assert "No attempt says which data the run was trained on" in found.remark


def test_a_run_that_cannot_be_written_to(
    trained: RunDirectory, images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_self: LocalStorage, path: str, _data: bytes) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(LocalStorage, "write_bytes", refuse)
    assert find(trained, [0], here=images).thumbnails[0]
    assert "examples.parquet is not written" in caplog.text


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100])
def test_a_damaged_file_is_made_anew(trained: RunDirectory, images: Path, content: bytes) -> None:
    trained.storage.write_bytes(EXAMPLES, content)
    assert find(trained, [0], here=images).thumbnails[0]
    assert find(trained, [0]).thumbnails[0]


def test_a_large_copy_is_made_on_demand_alone(
    trained: RunDirectory, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data without random access would be packed into the cache: not unasked, where they are large."""
    monkeypatch.setattr(examples, "MOST_TO_PACK_GIB", 0.0)
    monkeypatch.setenv("DCDIST_CACHE", str(tmp_path / "cache"))
    assert find(trained, [0], configured=images).thumbnails[0], "a folder is read where it lies"
    trained.storage.remove(EXAMPLES)
    rows = [
        {"image": path.read_bytes(), "path": str(path.relative_to(images))} for path in sorted(images.rglob("*.png"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    pack(str(images), str(tmp_path / "packed"))
    found = find(trained, [0], configured=tmp_path / "images.parquet")
    assert "would have to be packed into the cache first" in found.remark
    assert not (tmp_path / "cache").exists()
    assert find(trained, [0], configured=tmp_path / "packed").thumbnails[0]
    trained.storage.remove(EXAMPLES)
    open_source(tmp_path / "images.parquet")
    assert find(trained, [0], configured=tmp_path / "images.parquet").thumbnails[0], "a copy is there already"
