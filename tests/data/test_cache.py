"""The cache: made once, made anew for changed data, never half, and shared by processes that come at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import fsspec
import pytest

import dcdist.data.cache as cache_module
from dcdist.data.pack import pack
from dcdist.data.source import open_source
from dcdist.errors import UsageError


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def test_packs_once_and_anew_when_the_file_changes(parquet_file, cache_directory):
    open_source(parquet_file)
    (first,) = folders(cache_directory)
    marks = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert len(open_source(parquet_file, split="train")) == 5  # another split needs no other cache
    assert folders(cache_directory) == [first]
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == marks
    os.utime(parquet_file, ns=(1, 1))
    open_source(parquet_file)
    assert len(folders(cache_directory)) == 2


@pytest.mark.usefixtures("s3_server")
def test_changed_object_on_s3_is_fetched_anew(parquet_file, cache_directory, tmp_path, make_jpeg):
    pack(parquet_file, "s3://bucket/packed")
    assert len(open_source("s3://bucket/packed")) == 7
    assert len(open_source("s3://bucket/packed")) == 7
    assert len(folders(cache_directory)) == 1
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(make_jpeg())
    pack(tmp_path / "one", "s3://bucket/packed", overwrite=True)
    assert len(open_source("s3://bucket/packed")) == 1


def test_a_cache_directory_can_be_named(parquet_file, tmp_path, cache_directory):
    open_source(parquet_file, cache_directory=tmp_path / "elsewhere")
    assert len(folders(tmp_path / "elsewhere")) == 1
    assert not cache_directory.exists()


def test_default_is_below_home(monkeypatch, tmp_path):
    monkeypatch.delenv("DCDIST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_module.default_cache_directory() == tmp_path / ".cache" / "dcdist"


def test_left_overs_of_a_killed_process_are_removed(parquet_file, cache_directory):
    open_source(parquet_file)
    (done,) = folders(cache_directory)
    half = done.with_name(f"{done.name}.tmp-killed")
    shutil.copytree(done, half)
    (half / "dcdist-pack.json").unlink()
    shutil.rmtree(done)
    assert len(open_source(parquet_file)) == 7
    assert folders(cache_directory) == [done]


def _open_at_once(parquet_file: Path, cache: Path, barrier, queue) -> None:  # type: ignore[no-untyped-def]
    write_shards = cache_module.write_shards

    def slow_and_counted(*args: object, **kwargs: object) -> object:
        queue.put("wrote")
        time.sleep(0.3)
        return write_shards(*args, **kwargs)

    cache_module.write_shards = slow_and_counted
    barrier.wait()
    queue.put(open_source(parquet_file, cache_directory=cache).fingerprint())


def test_of_several_processes_one_packs_and_all_see_it(parquet_file, cache_directory):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    arguments = (parquet_file, cache_directory, barrier, queue)
    processes = [context.Process(target=_open_at_once, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    assert answers.count("wrote") == 1
    assert len(set(answers)) == 2
    assert queue.empty()


@pytest.mark.usefixtures("s3_server")
def test_remote_shards_that_do_not_fit_their_manifest(parquet_file, cache_directory):
    pack(parquet_file, "s3://bucket/packed")
    fsspec.filesystem("s3").pipe_file("bucket/packed/shard-00000.arrow", b"short")
    with pytest.raises(UsageError, match=r"s3://bucket/packed/shard-00000.arrow is 5 bytes long, its manifest says"):
        open_source("s3://bucket/packed")
    fsspec.filesystem("s3").pipe_file("bucket/packed/shard-00001.arrow", b"not in the manifest")
    fsspec.filesystem("s3").rm_file("bucket/packed/shard-00000.arrow")
    with pytest.raises(UsageError, match=r"s3://bucket/packed/shard-00000.arrow is missing"):
        open_source("s3://bucket/packed")
    assert folders(cache_directory) == []
