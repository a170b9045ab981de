"""Data behind a server that cannot be reached or fails: one line that names the URL, and the exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dcdist.cli import main
from dcdist.data.pack import pack
from dcdist.data.source import open_source
from dcdist.filesystems import StorageError

COMMANDS = {
    "info": ["data", "info", "s3://bucket/images"],
    "pack": ["data", "pack", "s3://bucket/images", "DESTINATION"],
    "pack there": ["data", "pack", "SOURCE", "s3://bucket/images"],
    "plan": ["train", "configs/deepcluster_digits.yaml", "data.root=s3://bucket/images", "run.dir=RUN", "--plan"],
    "train": ["train", "configs/deepcluster_digits.yaml", "data.root=s3://bucket/images", "run.dir=RUN"],
}


@pytest.fixture
def _no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("_no_credentials")
def test_a_command_without_credentials_ends_in_one_line(
    command: str, image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"SOURCE": image_folder, "DESTINATION": tmp_path / "packed", "RUN": tmp_path / "run"}
    arguments = COMMANDS[command]
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dcdist: ")
    assert line.endswith(" s3://bucket/images: NoCredentialsError: Unable to locate credentials")


@pytest.mark.usefixtures("s3_server")
def test_a_server_that_nobody_answers_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"^s3://other/images: EndpointConnectionError: Could not connect"):
        open_source("s3://other/images")


class Refused(Exception):
    """As the libraries of object stores have them: no OSError."""


@pytest.mark.parametrize(
    ("operation", "data", "named"),
    [
        ("find", "folder", "memory://data/folder"),
        ("cat", "folder", "memory://data/folder"),
        ("get_file", "parquet", "memory:///data/parquet/images.parquet"),
        ("cat_file", "packed", "memory://data/packed/dcdist-pack.json"),
        ("get_file", "packed", "memory://data/packed/shard-00000.arrow"),
    ],
)
def test_a_server_that_fails_while_data_is_read(
    operation: str,
    data: str,
    named: str,
    image_folder: Path,
    parquet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = MemoryFileSystem()
    memory.put(f"{image_folder}/", "/data/folder/", recursive=True)
    memory.put(str(parquet_file), "/data/parquet/images.parquet")
    pack(parquet_file, "memory://data/packed")
    fail(monkeypatch, operation)
    with pytest.raises(StorageError, match=f"^{named}: Refused: not now$"):
        open_source(f"memory://data/{data}", cache_directory=tmp_path)


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("find", "memory://packed"),
        ("put_file", "memory:///packed/shard-00000.arrow"),
        ("pipe_file", "memory://packed/dcdist-pack.json"),
    ],
)
def test_a_server_that_fails_while_data_is_packed(
    operation: str, named: str, parquet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, operation)
    with pytest.raises(StorageError, match=f"^{named}: Refused: not now$"):
        pack(parquet_file, "memory://packed")


def fail(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Refused("not now")

    monkeypatch.setattr(MemoryFileSystem, operation, refuse)
