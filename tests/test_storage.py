"""Storage: the same contract on a local path, on fsspec's memory and on a real S3 server."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdist import storage as storage_module
from dcdist.data.location import locate
from dcdist.errors import UsageError
from dcdist.storage import GrowingFile, LocalStorage, ObjectStorage, Storage, open_file, open_storage


@pytest.fixture(params=["path", "file", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    urls = {
        "path": f"{tmp_path}/run",
        "file": f"file://{tmp_path}/run",
        "memory": "memory://run",
        "s3": "s3://bucket/run",
    }
    return open_storage(urls[request.param])


def test_writes_replaces_and_lists(storage: Storage) -> None:
    assert storage.list("a") == []
    assert not storage.exists("a/one")
    storage.write_bytes("a/one", b"1")
    storage.write_bytes("a/b/two", b"22")
    storage.write_bytes("a/one", b"111")
    assert storage.read_bytes("a/one") == b"111"
    assert storage.list("a") == ["b", "one"]
    assert storage.list() == ["a"]
    assert (storage.size("a/one"), storage.size("a/b/two")) == (3, 2)
    assert storage.exists("a/one")
    with storage.open_for_reading("a/b/two") as handle:
        assert handle.read() == b"22"


def test_missing_files_are_named(storage: Storage) -> None:
    for operation in (storage.read_bytes, storage.size, storage.open_for_reading):
        with pytest.raises(FileNotFoundError, match="nothing"):
            operation("a/nothing")


def test_removes(storage: Storage) -> None:
    for path in ("a/one", "a/b/two", "c"):
        storage.write_bytes(path, b"x")
    storage.remove("c")
    storage.remove_tree("a")
    assert storage.list() == []
    storage.remove("c")
    storage.remove_tree("a")


def test_creates_exclusively(storage: Storage) -> None:
    storage.create_exclusive("attempts/0001.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("attempts/0001.json", b"second")
    assert storage.read_bytes("attempts/0001.json") == b"first"
    assert storage.list("attempts") == ["0001.json"]


def test_streams_up_and_down(storage: Storage, tmp_path: Path) -> None:
    with storage.open_for_writing("a/streamed") as handle:
        handle.write(b"abc")
        handle.write(b"def")
    assert storage.read_bytes("a/streamed") == b"abcdef"
    local = tmp_path / "local"
    storage.download("a/streamed", local)
    assert local.read_bytes() == b"abcdef"
    local.write_bytes(b"new")
    storage.upload(local, "a/streamed")
    assert storage.read_bytes("a/streamed") == b"new"


def test_lists_what_others_wrote_since(storage: Storage) -> None:
    storage.write_bytes("a/one", b"1")
    assert storage.list("a") == ["one"]
    open_storage(storage.url()).write_bytes("a/two", b"2")
    assert storage.list("a") == ["one", "two"]


def test_local_files_are_never_half_written(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("one", b"old")
    with pytest.raises(TypeError):
        storage.write_bytes("one", "not bytes")  # type: ignore[arg-type]
    assert storage.read_bytes("one") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    (tmp_path / ".one.123.tmp").write_bytes(b"left by a kill")
    assert storage.list() == ["one"]


def test_a_local_file_is_not_opened_for_writing_twice(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("one", b"old")
    with pytest.raises(FileExistsError), storage.open_for_writing("one"):
        pass
    assert storage.read_bytes("one") == b"old"


def test_url_and_local_path(tmp_path: Path) -> None:
    local, remote = open_storage(f"file://{tmp_path}/run/"), open_storage("memory://run/")
    assert local.url("a/b") == f"{tmp_path}/run/a/b"
    assert local.local_path("a/b") == tmp_path / "run/a/b"
    assert remote.url("a/b") == "memory://run/a/b"
    assert remote.url() == "memory://run"
    assert remote.local_path("a/b") is None


def create_all(folder: str, name: str, count: int) -> list[int]:
    storage, won = open_storage(folder), []
    for number in range(count):
        try:
            storage.create_exclusive(str(number), name.encode() * 1000)
        except FileExistsError:
            continue
        won.append(number)
    return won


def test_of_several_processes_one_creates(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        won = pool.starmap(create_all, [(str(tmp_path), name, 100) for name in "abc"], chunksize=1)
    assert sorted(number for numbers in won for number in numbers) == list(range(100))
    for name, numbers in zip("abc", won, strict=True):
        assert all((tmp_path / str(number)).read_bytes() == name.encode() * 1000 for number in numbers)
    assert len(list(tmp_path.iterdir())) == 100


def test_growing_file_is_in_place_at_once_locally(tmp_path: Path) -> None:
    with GrowingFile(open_storage(str(tmp_path)), "metrics/0001.jsonl") as file:
        file.append("one")
        assert (tmp_path / "metrics/0001.jsonl").read_bytes() == b"one\n"
        file.append("two \u00e9")
        file.sync()
    assert (tmp_path / "metrics/0001.jsonl").read_text("utf-8") == "one\ntwo \u00e9\n"


def test_growing_file_is_uploaded_on_sync_and_each_minute(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_server
    storage = open_storage("s3://bucket/run")
    with GrowingFile(storage, "metrics/0001.jsonl") as file:
        file.append("one")
        assert not storage.exists("metrics/0001.jsonl")
        file.sync()
        assert storage.read_bytes("metrics/0001.jsonl") == b"one\n"
        file.append("two")
        assert storage.read_bytes("metrics/0001.jsonl") == b"one\n"
        monkeypatch.setattr(storage_module, "UPLOAD_EVERY_SECONDS", 0.0)
        file.append("three")
        assert storage.read_bytes("metrics/0001.jsonl") == b"one\ntwo\nthree\n"
        monkeypatch.setattr(storage_module, "UPLOAD_EVERY_SECONDS", 60.0)
        file.append("four")
    assert storage.read_bytes("metrics/0001.jsonl") == b"one\ntwo\nthree\nfour\n"


def test_a_failing_periodic_upload_is_a_warning_and_a_failing_sync_an_error(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert s3_server
    storage = open_storage("s3://no-such-bucket/run")
    assert isinstance(storage, ObjectStorage)
    file = GrowingFile(storage, "metrics/0001.jsonl")
    monkeypatch.setattr(storage_module, "UPLOAD_EVERY_SECONDS", 0.0)
    file.append("one")
    assert "s3://no-such-bucket/run/metrics/0001.jsonl is not uploaded for now" in caplog.text
    with pytest.raises(OSError, match="bucket"):
        file.sync()
    with pytest.raises(OSError, match="bucket"):
        file.close()


def fail_while_open(url: str) -> None:
    with GrowingFile(open_storage(url), "metrics/0001.jsonl") as file:
        file.append("one")
        raise ValueError("the first")


def test_a_failing_close_does_not_hide_the_error_before_it(s3_server: str) -> None:
    assert s3_server
    with pytest.raises(ValueError, match="the first"):
        fail_while_open("s3://no-such-bucket/run")


@pytest.mark.parametrize(
    ("url", "root", "name"),
    [
        ("clusters.parquet", ".", "clusters.parquet"),
        ("/clusters.parquet", "/", "clusters.parquet"),
        ("folder/sub/clusters.parquet", "folder/sub", "clusters.parquet"),
        ("memory://bucket/clusters.parquet", "memory://bucket", "clusters.parquet"),
    ],
)
def test_a_file_lies_in_its_folder(url: str, root: str, name: str) -> None:
    storage, found = open_file(url)
    assert (storage.root, found) == (root, name)
    assert isinstance(storage, ObjectStorage if "://" in url else LocalStorage)


@pytest.mark.parametrize("url", ["s3://clusters.parquet", "folder/", "..", ""])
def test_what_is_no_file_in_a_folder_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no file in a folder or bucket"):
        open_file(url)


@pytest.mark.parametrize("opened", [open_storage, locate])
def test_what_cannot_be_opened_is_refused_alike_for_runs_and_for_data(
    opened: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "'foo://b/x' cannot be opened: Protocol not known: foo; expected a local path, s3://... or the like"
    with pytest.raises(UsageError) as error:
        opened("foo://b/x")
    assert str(error.value) == expected
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UsageError, match=r"^'s3://b/x' cannot be opened: .*; pip install 'dcdist\[s3\]'$"):
        opened("s3://b/x")
