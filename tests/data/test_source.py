"""Opening data sets: every form gives the same images, and what is wrong is named."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcdist.cli import main
from dcdist.data.decode import decode_image
from dcdist.data.image_folder import FolderSource, find_layout
from dcdist.data.pack import pack
from dcdist.data.packed import PackedSource
from dcdist.data.source import ImageSource, open_source
from dcdist.errors import RunError, UsageError


def content(source: ImageSource) -> dict[str, bytes]:
    return {key: source.read(sample_id) for sample_id, key in enumerate(source.keys)}


def upload(folder: Path, url: str) -> None:
    filesystem, path = fsspec.url_to_fs(url)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            filesystem.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@pytest.fixture(
    params=["folder", "parquet", "tar", "packed", "s3 folder", "s3 parquet", "s3 tar", "s3 packed", "memory"]
)
def every_form(request, image_folder, parquet_file, tar_file, tmp_path) -> str:
    """The same seven images, as a path or URL."""
    form = request.param
    if form.endswith("packed"):
        pack(parquet_file, tmp_path / "packed", shard_bytes=2000)
    local = {"folder": image_folder, "parquet": parquet_file, "tar": tar_file, "packed": tmp_path / "packed"}
    if not form.startswith("s3"):
        if form == "memory":
            upload(image_folder, "memory://images")
            return "memory://images"
        return str(local[form])
    request.getfixturevalue("s3_server")
    source = local[form.split()[1]]
    if source.is_file():
        fsspec.filesystem("s3").pipe_file(f"bucket/{source.name}", source.read_bytes())
        return f"s3://bucket/{source.name}"
    upload(source, "s3://bucket/images")
    return "s3://bucket/images"


def test_every_form_gives_the_same(every_form, files, image_folder):
    source = open_source(every_form)
    assert list(source.keys) == list(files)
    assert content(source) == files
    assert source.labels.tolist() == [int("dog" in name) for name in files]
    assert source.labels.dtype == np.int32
    assert source.label_names == ["cat", "dog"]
    assert source.sizes.tolist() == [len(image) for image in files.values()]
    assert source.sizes.dtype == np.int64
    assert source.fingerprint() == open_source(image_folder).fingerprint()
    assert len(source) == 7
    train = open_source(every_form, split="train")
    assert list(train.keys) == [name for name in files if name.startswith("train/")]
    assert content(train) == {name: image for name, image in files.items() if name.startswith("train/")}
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    rest = open_source(every_form, without="test")
    assert (list(rest.keys), rest.fingerprint()) == (list(train.keys), train.fingerprint())
    assert [rest.read(index) for index in range(5)] == [train.read(index) for index in range(5)]
    assert list(pickle.loads(pickle.dumps(rest)).keys) == list(train.keys)
    assert list(open_source(every_form, without="val").keys) == list(source.keys), "nothing to leave out"
    assert open_source(every_form, split="test").label_names == ["cat", "dog"]
    with pytest.raises(UsageError, match=r"has no split 'val': it has test \(2\), train \(5\)"):
        open_source(every_form, split="val")


def test_reading_in_forked_and_spawned_processes(image_folder, parquet_file, files):
    for root in (image_folder, parquet_file):
        source = open_source(root, split="train")
        expected = [image for name, image in files.items() if name.startswith("train/")]
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.map(source.read, range(5)) == expected
        again = pickle.loads(pickle.dumps(source))
        assert again.fingerprint() == source.fingerprint()
        assert again.labels.tolist() == source.labels.tolist()


def test_fingerprint_is_of_keys_sizes_and_order_alone(files, tmp_path):
    def written(name: str, rows: dict[str, bytes], **columns: list[object]) -> str:
        pq.write_table(pa.table({"path": list(rows), "image": list(rows.values()), **columns}), tmp_path / name)
        return open_source(tmp_path / name).fingerprint()

    digest = hashlib.sha256("".join(f"{key}\0{len(image)}\0" for key, image in files.items()).encode())
    digest.update(b"7 images")
    assert written("a.parquet", files) == digest.hexdigest()
    assert written("b.parquet", files, label=[3] * 7) == digest.hexdigest()
    assert written("c.parquet", dict(reversed(files.items()))) != digest.hexdigest()
    assert written("d.parquet", {**files, "train/dog/9.JPEG": b"x"}) != digest.hexdigest()
    assert written("e.parquet", {**files, "more": b"x"}) != digest.hexdigest()


def test_local_files_and_shards_are_not_cached(image_folder, parquet_file, tmp_path, cache_directory):
    pack(parquet_file, tmp_path / "packed")
    assert isinstance(open_source(image_folder), FolderSource)
    assert isinstance(open_source(tmp_path / "packed"), PackedSource)
    assert not cache_directory.exists()


# Folders


@pytest.mark.parametrize(
    ("names", "split", "splits", "classes"),
    [
        (["a.jpg", "b.jpg"], None, [None, None], [None, None]),
        (["x/a.jpg", "x/b.jpg"], None, [None, None], [None, None]),
        (["x/a.jpg", "y/b/c.jpg"], None, [None, None], [(0, "x"), (1, "y")]),
        (["x/a.jpg", "b.jpg"], None, [None, None], [None, None]),
        (["data/x/a.jpg", "data/y/b.jpg"], None, [None, None], [(0, "x"), (1, "y")]),
        (["train/x/a.jpg", "val/y/b.jpg"], None, ["train", "val"], [(0, "x"), (1, "y")]),
        (["train/a.jpg", "test/b.jpg"], None, ["train", "test"], [None, None]),
        (["d/train/x/a.jpg", "d/train/y/b.jpg"], None, ["train", "train"], [(0, "x"), (1, "y")]),
        (["mine/x/a.jpg", "yours/y/b.jpg"], None, [None, None], [(0, "mine"), (1, "yours")]),
        (["mine/x/a.jpg", "yours/y/b.jpg"], "mine", ["mine", "yours"], [(0, "x"), (1, "y")]),
    ],
)
def test_meaning_of_folders(names, split, splits, classes):
    layout = find_layout(names, split)
    assert [layout.split_of(name) for name in names] == splits
    assert [layout.class_of(name) for name in names] == classes


def test_split_by_the_name_of_any_subfolder(image_folder):
    (image_folder / "train").rename(image_folder / "learning")
    source = open_source(image_folder, split="learning")
    assert len(source) == 5
    assert source.labels.tolist() == [0, 0, 1, 1, 1]


def test_flat_folder_has_no_labels(tmp_path, make_jpeg):
    for name in ("b.jpg", "a.PNG", "c.webp"):
        (tmp_path / name).write_bytes(make_jpeg())
    source = open_source(tmp_path)
    assert list(source.keys) == ["a.PNG", "b.jpg", "c.webp"]
    assert source.labels is None
    assert source.label_names is None
    with pytest.raises(UsageError, match="has no split 'train': it is not split"):
        open_source(tmp_path, split="train")


def test_a_file_that_vanished_is_named(image_folder):
    source = open_source(image_folder)
    (image_folder / "train" / "cat" / "0.jpg").unlink()
    with pytest.raises(RunError, match=r"image 'train/cat/0.jpg' cannot be read any more .*was the folder changed"):
        source.read(list(source.keys).index("train/cat/0.jpg"))


def test_links_are_followed_and_broken_ones_named(tmp_path, image_folder):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(image_folder / "train")
    assert len(open_source(tmp_path / "links")) == 5
    (tmp_path / "links" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UsageError, match=r"gone.jpg cannot be read"):
        open_source(tmp_path / "links")


def test_a_name_that_is_not_utf8_is_refused(tmp_path, make_jpeg):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(make_jpeg())
    with pytest.raises(UsageError, match="not UTF-8"):
        open_source(tmp_path)


# What is not there, or not what it should be


@pytest.mark.usefixtures("s3_server")
def test_missing_path_and_unknown_things_are_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="s3://bucket/nowhere does not exist"):
        open_source("s3://bucket/nowhere")
    with pytest.raises(UsageError, match=r"'gopher://x' cannot be opened: .*gopher"):
        open_source("gopher://x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no images \(no files\): expected .jpg"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "a.txt").write_text("x")
    (tmp_path / "empty" / "b.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds no images \(2 .txt\)"):
        open_source(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"a.txt is a single file: expected one of .parquet"):
        open_source(tmp_path / "empty" / "a.txt")


def test_several_kinds_in_one_folder_are_refused(image_folder, parquet_file):
    shutil.copy(parquet_file, image_folder / "meta.parquet")
    with pytest.raises(UsageError, match=r"several kinds \(.*7 image.*1 parquet|several kinds \(1 parquet, 7 image"):
        open_source(image_folder)


def test_tar_without_images_and_damaged_tar(tmp_path, tar_file):
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(UsageError, match=r"none.tar holds no images"):
        open_source(tmp_path / "none.tar")
    (tmp_path / "garbage.tar").write_bytes(b"garbage" * 1000)
    with pytest.raises(UsageError, match=r"garbage.tar is not a readable tar file"):
        open_source(tmp_path / "garbage.tar")
    whole = tar_file.read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"half.tar.gz is not a readable tar file"):
        open_source(tmp_path / "half.tar.gz")
    with tarfile.open(tar_file) as archive, tarfile.open(tmp_path / "plain.tar", "w") as plain:
        for member in archive:
            plain.addfile(member, archive.extractfile(member))
    whole = (tmp_path / "plain.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(whole[:-300])
    with pytest.raises(UsageError, match=r"cut.tar is not a readable tar file"):
        open_source(tmp_path / "cut.tar")


# Parquet


def write(file: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_parquet_with_images_alone(tmp_path, files):
    source = open_source(write(tmp_path / "a.parquet", image=list(files.values())))
    assert list(source.keys) == [f"row-{number:09d}" for number in range(7)]
    assert source.labels is None
    assert source.label_names is None
    assert [source.read(index) for index in range(7)] == list(files.values())


def test_parquet_folder_with_missing_labels_and_names(tmp_path, files):
    images = list(files.values())
    folder = tmp_path / "many"
    (folder / "sub").mkdir(parents=True)
    write(folder / "sub" / "b.parquet", image=images[4:], label=[2, 0, -1], label_name=["two", "zero", None])
    write(
        folder / "a.parquet", image=pa.array(images[:4], pa.large_binary()), label=pa.array([None, 0, 2, 2], pa.uint8())
    )
    with pytest.raises(UsageError, match="label 2 is named None and, at 'row-000000004', 'two'"):
        open_source(folder)
    write(folder / "a.parquet", image=images[:4], label=[None, 0, 2, 2], label_name=[None, "zero", "two", "two"])
    source = open_source(folder)
    assert [source.read(index) for index in range(7)] == images
    assert source.labels.tolist() == [-1, 0, 2, 2, 2, 0, -1]
    assert source.label_names == ["zero", "1", "two"]


def test_a_split_left_out_leaves_the_images_of_none(tmp_path, make_jpeg):
    columns = {"image": [make_jpeg()] * 3, "path": ["a", "b", "c"], "split": ["test", None, "more"]}
    path = write(tmp_path / "a.parquet", **columns, label=[0, 1, None])
    rest = open_source(path, without="test")
    assert (list(rest.keys), rest.labels.tolist()) == (["b", "c"], [1, -1])
    with pytest.raises(UsageError, match=r"no images but those of split 'test', .* it has more \(1\), test \(1\)"):
        open_source(path, "test", without="test")


def test_labels_in_another_split_are_none(tmp_path, make_jpeg):
    columns = {"image": [make_jpeg()] * 3, "path": ["a", "b", "c"], "split": ["train", "train", "test"]}
    path = write(tmp_path / "a.parquet", **columns, label=[None, None, 1])
    assert open_source(path, "train").labels is None
    assert open_source(path, without="test").labels is None
    assert open_source(path, "test").labels.tolist() == [1]
    assert open_source(path).labels.tolist() == [-1, -1, 1]


def test_repeated_keys_get_numbers(tmp_path, make_jpeg):
    path = write(tmp_path / "a.parquet", image=[make_jpeg()] * 5, path=["a", "b", "a", "a#2", "a"])
    assert list(open_source(path).keys) == ["a", "b", "a#2", "a#2#2", "a#3"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [b"x"], "label": [0]}, r"no column `image` .* its columns are img \(binary\), label \(int64\)"),
        ({"image": ["x"]}, r"`image` must hold bytes \(binary\), its type is string"),
        ({"image": [b"x"], "label": ["cat"]}, "`label` must hold integers, its type is string"),
        ({"image": [b"x"], "label": [1.0]}, "`label` must hold integers, its type is double"),
        ({"image": [b"x"], "label_name": ["cat"]}, "`label_name` but no column `label`"),
        ({"image": [b"x"], "path": [7]}, r"a.parquet: the column `path` must hold text \(string\), its type is int64"),
        ({"image": [b"x"], "split": [7]}, r"`split` must hold text \(string\), its type is int64"),
        ({"image": [b"x"], "label": [0], "label_name": [b"x"]}, r"`label_name` must hold text .*, its type is binary"),
        ({"image": [b"x"], "label": [-2], "path": ["p"]}, "label -2 of image 'p'; labels are 0, 1"),
        ({"image": [b"x"], "label": [2**40]}, "label 1099511627776"),
        ({"image": pa.array([], pa.binary())}, "there is no image to pack"),
    ],
)
def test_parquet_that_does_not_fit_is_refused(tmp_path, cache_directory, columns, message):
    with pytest.raises(UsageError, match=message):
        open_source(write(tmp_path / "a.parquet", **columns))
    assert [path.suffix for path in cache_directory.iterdir()] == [".lock"]  # nothing half done is left


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_of_any_kind_in_parquet(tmp_path, make_jpeg, kind):
    texts = {name: pa.array([text, None]).cast(kind) for name, text in (("path", "a"), ("split", "train"))}
    names = pa.array(["cat", "dog"]).cast(kind)
    path = write(tmp_path / "a.parquet", image=[make_jpeg()] * 2, label=[0, 1], label_name=names, **texts)
    source = open_source(path)
    assert (list(source.keys), source.label_names) == (["a", "row-000000001"], ["cat", "dog"])
    assert list(open_source(path, "train").keys) == ["a"]


@pytest.mark.parametrize("command", ["pack", "info"])
@pytest.mark.parametrize("column", ["path", "split", "label_name"])
def test_the_commands_name_a_column_of_a_wrong_type(tmp_path, make_jpeg, capsys, command, column):
    path = write(tmp_path / "a.parquet", image=[make_jpeg()] * 2, label=[0, 0], **{column: [7, 8]})
    with pytest.raises(SystemExit) as ended:
        main(["data", command, str(path), *([str(tmp_path / "packed")] * (command == "pack"))])
    assert ended.value.code == 2
    message = f"dcdist: {path}: the column `{column}` must hold text (string), its type is int64\n"
    assert capsys.readouterr().err == message


def test_no_parquet_inside(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"garbage")
    with pytest.raises(UsageError, match=r"a.parquet is not a Parquet file"):
        open_source(tmp_path / "a.parquet")


def test_real_files(shared_data):
    source = open_source(shared_data / "cifar10_catsdogs.parquet", split="test")
    assert len(source) == 2000
    assert np.bincount(source.labels).tolist() == [1000, 1000]
    assert source.label_names == ["cat", "dog"]
    assert decode_image(source.read(1999)).shape == (32, 32, 3)
    photographs = open_source(shared_data / "voc2007_excerpt.tar")
    assert len(photographs) == 378
    assert photographs.sizes.sum() == sum(len(photographs.read(index)) for index in range(378))
