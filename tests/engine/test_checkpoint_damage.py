"""Damage on the disk, a full disk: the newest whole checkpoint is found, and the message says what is wrong."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import dcdist.commits
from dcdist.commits import CheckpointName, Commit, DamagedCheckpointError, parse_commit, verify_files
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.rows import KeyedRows
from dcdist.engine import restore
from dcdist.engine.checkpoint import CheckpointFailed
from dcdist.errors import ExitCode, RunError, UsageError
from dcdist.run_directory import RunDirectory
from dcdist.storage import Storage
from tests.availability import unavailable
from tests.engine.checkpoint_states import Holder, begin, folders, run_ranks, save, start, state_at, train

NEWEST = "checkpoints/step-00000002-train.0001"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A run with checkpoints of steps 1 and 2."""
    url = str(tmp_path / "run")
    train(url, range(1, 3))
    return url


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


FILES = ["model.safetensors", "model.json", "progress.safetensors", "progress.json", "COMMIT.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit(url: str, file: str, where: str, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(url, NEWEST, file)
    size = path.stat().st_size
    flip(path, {"first": 0, "middle": size // 2, "last": size - 1}[where], bit=3)
    assert begin(url)[1] == 1
    warning = "checkpoint step-00000002-train.0001 is damaged and passed over: "
    assert f"{warning}{NEWEST}/{file} " in caplog.text
    assert RunDirectory(url).read_attempt(2)["began_from"] == "step-00000001-train.0001"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("size", [0, 7])
def test_a_truncated_file(url: str, file: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(Path(url, NEWEST, file), size)
    assert begin(url)[1] == 1
    assert f"{NEWEST}/{file} " in caplog.text


@pytest.mark.parametrize("file", FILES[:-1])
def test_a_missing_file(url: str, file: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(url, NEWEST, file).unlink()
    states = {str(info.name): info.state for info in RunDirectory(url).inventory()}
    assert states["step-00000001-train.0001"] == "ok"
    assert states["step-00000002-train.0001"].startswith(f"damaged: {NEWEST}/{file} cannot be read: ")
    assert begin(url)[1] == 1
    assert f"{NEWEST}/{file} cannot be read" in caplog.text


def test_a_missing_commit_is_no_checkpoint(url: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(url, NEWEST, "COMMIT.json").unlink()
    assert [info.state for info in RunDirectory(url).inventory()] == ["ok", "uncommitted"]
    assert begin(url)[1] == 1
    assert caplog.text == ""
    assert folders(url) == ["step-00000001-train.0001"]


def test_every_single_bit_of_a_commit(url: str) -> None:
    name = CheckpointName(2, "train", 1)
    data = Path(url, NEWEST, "COMMIT.json").read_bytes()
    expected = parse_commit(name, data)
    noticed = 0
    for position in range(len(data)):
        for bit in range(8):
            changed = data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
            try:
                # A bit that only changes white space leaves the content as it was.
                assert parse_commit(name, changed) == expected
            except DamagedCheckpointError:
                noticed += 1
    assert noticed > 0.9 * 8 * len(data)


def test_the_commit_of_another_checkpoint(url: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(url, NEWEST, "COMMIT.json").write_bytes(
        Path(url, "checkpoints/step-00000001-train.0001/COMMIT.json").read_bytes()
    )
    assert begin(url)[1] == 1
    assert f"{NEWEST}/COMMIT.json is that of another checkpoint, step-00000001-train.0001" in caplog.text


def test_none_whole(url: str) -> None:
    for step in (1, 2):
        flip(Path(url, f"checkpoints/step-0000000{step}-train.0001/model.safetensors"), 100, 0)
    with pytest.raises(
        RunError, match=r"none is whole \(step-00000002.*has changed.*; step-00000001.*restore one"
    ) as error:
        begin(url)
    assert error.value.exit_code == ExitCode.FAILURE
    assert folders(url) == ["step-00000001-train.0001", "step-00000002-train.0001"]


def test_another_format_version(url: str) -> None:
    path = Path(url, NEWEST, "COMMIT.json")
    commit = parse_commit(CheckpointName(2, "train", 1), path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcdist.commits, "FORMAT_VERSION", 7)
        path.write_bytes(commit.to_bytes())
    with pytest.raises(UsageError, match=r"step-00000002-train.0001 has format version 7, .* reads version 2"):
        begin(url)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        unavailable(f"mounting a file system is not permitted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def big_state(step: int) -> dict[str, Holder]:
    return {**state_at(step), "z": Holder({"big": torch.zeros(500_000)})}


def test_a_full_disk(small_disk: Path) -> None:
    url = str(small_disk / "run")
    checkpointer, _ = begin(url)
    save(checkpointer, 1)
    with pytest.raises(CheckpointFailed) as error:
        checkpointer.save(2, "train", big_state(2), {})
    message = str(error.value)
    assert error.value.exit_code == ExitCode.FAILURE
    assert f"checkpoint {url}/checkpoints/step-00000002-train.0001 could not be written: " in message
    assert f"{url}/checkpoints/step-00000002-train.0001/z.safetensors: " in message
    assert "No space left on device" in message
    assert "the newest good checkpoint is step-00000001-train.0001. Make room" in message
    assert folders(url) == ["step-00000001-train.0001"]
    checkpointer, step = begin(url)
    assert step == 1
    save(checkpointer, 2)
    assert begin(url)[1] == 2


def test_a_disk_too_full_for_the_commit_itself(small_disk: Path) -> None:
    url = str(small_disk / "run")
    checkpointer, _ = begin(url)
    save(checkpointer, 1)
    data = sum(path.stat().st_size for path in (small_disk / "run/checkpoints").rglob("*.*s*"))
    assert data > 9000
    free = os.statvfs(small_disk)
    # Whole pages: three for the weights, one for each of the three other data files, none for COMMIT.json.
    (small_disk / "filler").write_bytes(bytes((free.f_bavail - 6) * free.f_bsize))
    with pytest.raises(CheckpointFailed, match="No space left on device"):
        save(checkpointer, 2)
    assert folders(url) == ["step-00000001-train.0001"]


def save_beyond_the_limit(url: str) -> None:
    checkpointer, step = begin(url)
    assert step == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(CheckpointFailed, match=r"z.safetensors: \[Errno 27\] File too large"):
        checkpointer.save(step + 1, "train", big_state(step + 1), {})


def test_a_file_that_the_system_refuses(url: str) -> None:
    process = start(save_beyond_the_limit, url)
    process.join()
    assert process.exitcode == 0
    assert folders(url) == ["step-00000001-train.0001", "step-00000002-train.0001"]
    assert begin(url)[1] == 2


def damaged_for_one(collectives: Collectives, folder: str) -> str:
    """Rank 1 finds the newest one changed, rank 0 whole: as after a page went bad on one machine."""
    checkpointer, _ = begin(f"{folder}/damaged", collectives)
    for step in (1, 2):
        save(checkpointer, step)
    if collectives.rank == 1:

        def verify_badly(_storage: Storage, commit: Commit) -> None:
            if commit.name.step == 2:
                raise DamagedCheckpointError("model.safetensors has changed")

        restore.verify_files = verify_badly
    _, step = begin(f"{folder}/damaged", collectives)
    restore.verify_files = verify_files
    return f"began from {step}"


def bank(collectives: Collectives) -> dict[str, Holder]:
    keys = torch.arange(collectives.rank, 60_000, collectives.world_size)
    return {"bank": Holder({"rows": KeyedRows(keys, {"x": keys.float()})})}


def apart(collectives: Collectives, folder: str) -> str:
    """Each rank sees a run directory of its own."""
    checkpointer, _ = begin(f"{folder}/apart", collectives)
    if collectives.rank == 1:
        checkpointer._storage = RunDirectory(f"{folder}/elsewhere").storage
    with pytest.raises(CheckpointFailed) as error:
        checkpointer.save(1, "train", bank(collectives), {})
    return str(error.value)


def fails_on_one(collectives: Collectives, folder: str) -> str:
    """Rank 1 cannot write as much as it has to."""
    checkpointer, _ = begin(f"{folder}/failing", collectives)
    checkpointer.save(1, "train", bank(collectives), {})
    if collectives.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(CheckpointFailed) as error:
        checkpointer.save(2, "train", bank(collectives), {})
    return str(error.value)


def on_two_ranks(collectives: Collectives, folder: str) -> None:
    told = [scenario(collectives, folder) for scenario in (damaged_for_one, apart, fails_on_one)]
    Path(folder, f"told-{collectives.rank}.json").write_text(json.dumps(told))


def test_two_ranks_agree_on_damage_and_failure(tmp_path: Path) -> None:
    assert run_ranks(on_two_ranks, 2, str(tmp_path)) == [0, 0]
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    damaged, differing, failing = first
    assert damaged == "began from 1"
    assert "bank.rows-00001.safetensors is not there" in differing
    assert "do all machines see the same run.dir?" in differing
    assert "rank 1: " in failing
    assert "bank.rows-00001.safetensors: [Errno 27] File too large" in failing
    assert folders(f"{tmp_path}/failing") == ["step-00000001-train.0001"]


def test_bits_of_data_files_at_random(url: str) -> None:
    generator = np.random.default_rng(0)
    names = [file for file in FILES for _ in range(4)]
    for file in names:
        path = Path(url, NEWEST, file)
        whole = path.read_bytes()
        flip(path, int(generator.integers(len(whole))), int(generator.integers(8)))
        state = {str(info.name): info.state for info in RunDirectory(url).inventory()}["step-00000002-train.0001"]
        assert state == "ok" if file == "COMMIT.json" and is_same_json(path.read_bytes(), whole) else "damaged" in state
        path.write_bytes(whole)


def is_same_json(changed: bytes, whole: bytes) -> bool:
    name = CheckpointName(2, "train", 1)
    try:
        return parse_commit(name, changed) == parse_commit(name, whole)
    except DamagedCheckpointError:
        return False
