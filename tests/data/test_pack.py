"""Packing: what goes in comes out, in bounded memory, and a part never passes for the whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from dcdist.data.pack import pack, write_shards
from dcdist.data.source import ImageRow, open_source
from dcdist.errors import UsageError

MANIFEST = "dcdist-pack.json"


@pytest.mark.parametrize("destination", ["local", "s3://bucket/deep/packed", "memory://packed"])
def test_summary_and_content(image_folder, files, tmp_path, destination, request):
    if destination.startswith("s3"):
        request.getfixturevalue("s3_server")
    destination = str(tmp_path / "deep" / "packed") if destination == "local" else destination
    summary = pack(image_folder, destination, shard_bytes=2000)
    source = open_source(destination)
    assert {key: source.read(index) for index, key in enumerate(source.keys)} == files
    assert summary.num_images == 7
    assert summary.num_bytes == sum(len(image) for image in files.values())
    assert summary.num_shards > 1
    assert summary.split_counts == {"test": 2, "train": 5}
    assert summary.label_names == ["cat", "dog"]
    assert summary.fingerprint == source.fingerprint() == open_source(image_folder).fingerprint()


def test_shards_are_plain_arrow_files_and_the_manifest_says_it_all(parquet_file, files, tmp_path):
    pack(parquet_file, tmp_path / "packed", shard_bytes=2 * len(next(iter(files.values()))))
    manifest = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    assert manifest["num_rows"] == 7
    assert manifest["format_version"] == 1
    assert manifest["split_counts"] == {"test": 2, "train": 5}
    assert manifest["label_names"] == ["cat", "dog"]
    rows = []
    for shard in manifest["shards"]:
        path = tmp_path / "packed" / shard["name"]
        table = pa.ipc.open_file(path).read_all()
        assert len(table) == shard["num_rows"]
        assert path.stat().st_size == shard["num_bytes"]
        rows += table.to_pylist()
    assert [row["key"] for row in rows] == list(files)
    assert [row["image"] for row in rows] == list(files.values())
    assert [row["label"] for row in rows] == [int("dog" in name) for name in files]
    assert [row["split"] for row in rows] == [name.split("/")[0] for name in files]
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        MANIFEST,
        *(shard["name"] for shard in manifest["shards"]),
    ]


@pytest.mark.usefixtures("s3_server")
def test_packed_shards_can_be_packed_again(parquet_file, tmp_path):
    first = pack(parquet_file, "s3://bucket/packed", shard_bytes=1000)
    second = pack("s3://bucket/packed", tmp_path / "again")
    third = pack(tmp_path / "again", tmp_path / "third", shard_bytes=1000)
    assert (second.num_shards, third.num_shards) == (1, first.num_shards)
    assert first.fingerprint == second.fingerprint == third.fingerprint
    assert third.split_counts == first.split_counts
    assert open_source(tmp_path / "third").labels.tolist() == open_source(parquet_file).labels.tolist()


@pytest.mark.parametrize("destination", ["local", "memory://packed"])
def test_overwrites_only_when_told(image_folder, parquet_file, tmp_path, destination):
    destination = str(tmp_path / "packed") if destination == "local" else destination
    pack(image_folder, destination, shard_bytes=1000)
    with pytest.raises(UsageError, match="holds packed shards already"):
        pack(parquet_file, destination)
    assert len(open_source(destination)) == 7
    pack(parquet_file, destination, overwrite=True)
    filesystem, path = fsspec.url_to_fs(destination)
    assert len(filesystem.ls(path)) == 2
    assert len(open_source(destination)) == 7


def test_source_and_destination_must_differ(parquet_file, tmp_path):
    pack(parquet_file, tmp_path / "packed")
    with pytest.raises(UsageError, match="both source and destination"):
        pack(tmp_path / "packed", f"{tmp_path}/x/../packed", overwrite=True)
    assert len(open_source(tmp_path / "packed")) == 7


def _killed_while_packing(destination: str) -> None:
    def rows() -> Iterator[ImageRow]:
        for number in range(10):
            yield ImageRow(str(number), bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)

    write_shards(rows(), destination, shard_bytes=3000, overwrite=True)


@pytest.mark.parametrize("was_there", [False, True])
def test_an_interrupted_pack_does_not_open(tmp_path, parquet_file, was_there):
    destination = tmp_path / "packed"
    if was_there:
        pack(parquet_file, destination)
    process = multiprocessing.get_context("fork").Process(target=_killed_while_packing, args=(str(destination),))
    process.start()
    process.join(timeout=30)
    assert process.exitcode == -signal.SIGKILL
    assert (destination / "shard-00002.arrow").exists()
    with pytest.raises(
        UsageError, match=r"shard\(s\) but no dcdist-pack.json: packing was interrupted; pack again with"
    ):
        open_source(destination)
    pack(parquet_file, destination, overwrite=True)
    assert len(open_source(destination)) == 7


def test_damaged_packs_are_refused(parquet_file, tmp_path):
    def packed(name: str) -> Path:
        pack(parquet_file, tmp_path / name, shard_bytes=1500)
        return tmp_path / name

    folder = packed("missing")
    (folder / "shard-00001.arrow").unlink()
    with pytest.raises(UsageError, match=r"shard-00001.arrow is missing, its manifest says \d+ bytes"):
        open_source(folder)
    folder = packed("truncated")
    shard = folder / "shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"shard-00001.arrow is \d+ bytes long, its manifest says"):
        open_source(folder)
    folder = packed("manifest")
    (folder / MANIFEST).write_text('{"format_version": 1, "shards": ')
    with pytest.raises(UsageError, match=r"dcdist-pack.json is damaged .*pack the images again"):
        open_source(folder)
    (folder / MANIFEST).write_text('{"format_version": 2}')
    with pytest.raises(UsageError, match="has format version 2, this dcdist reads 1"):
        open_source(folder)


def test_one_name_a_label(tmp_path):
    rows = [ImageRow("a", b"x", 0, "cat"), ImageRow("b", b"y", 0, "dog")]
    with pytest.raises(UsageError, match="label 0 is named 'cat' and, at 'b', 'dog': one name a label"):
        write_shards(rows, tmp_path / "packed")


PACKING = """
import os, resource, sys
from dcdist.data.pack import write_shards
from dcdist.data.source import ImageRow

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_shards((ImageRow(str(number), os.urandom(1_000_000)) for number in range(150)), sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_bounded(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PACKING, str(tmp_path / "packed")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=60, check=True)
    assert int(done.stdout) < 70e6  # of 150 MB in one shard
