"""Damage, a full disk, two starts at once, a bug: the run says what happened and goes on from the last good state."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcdist.run_directory import RunDirectory
from dcdist.status import read_status
from tests.runs.observation import ExitAtFeatures, LimitFileSize, ask_at_every_boundary
from tests.runs.processes import assert_same_state, final_state, run, run_to_message, start_run


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (truncate, "method.safetensors", "bytes"),
        (flip_a_bit, "method.safetensors", "was written"),
        (Path.unlink, "clustering.safetensors", "No such file"),
        (truncate, "COMMIT.json", ""),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    damage: Callable[[Path], None],
    file: str,
    words: str,
    undisturbed: dict[int, dict[str, Any]],
    config: Path,
    tmp_path: Path,
) -> None:
    assert run(config, DCDIST_FAULT="train:step:10") == [-signal.SIGKILL]
    before, newest = (info.name for info in RunDirectory(str(tmp_path / "run")).inventory())
    damage(tmp_path / "run" / "checkpoints" / str(newest) / file)
    code, message = run_to_message(config)
    assert code == 0
    assert f"checkpoint {newest} is damaged and passed over: checkpoints/{newest}/{file}" in message
    assert words in message
    assert RunDirectory(str(tmp_path / "run")).read_attempt(2)["began_from"] == str(before)
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])


def test_a_full_disk(undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path) -> None:
    assert run(config, DCDIST_FAULT="train:step:9:*:SIGTERM") == [75]
    code, message = run_to_message(config, prepare=LimitFileSize(20_000))
    assert code == 1
    assert "File too large" in message
    assert "the newest good checkpoint is step-00000009-train.0001" in message
    assert RunDirectory(str(tmp_path / "run")).read_attempt(2)["ended"]["exit_code"] == 1
    assert run(config) == [0]
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])


def test_of_two_starts_the_newer_owns_the_run(
    undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    older = start_run(config, environment={"DCDIST_FAULT": "train:step:9:*:SIGSTOP"}, prepare=ask_at_every_boundary)
    older.wait_until_stopped()
    assert run(config) == [0]
    older.signal(signal.SIGCONT)
    assert older.wait() == [3]
    assert "a newer attempt" in older.errors()
    assert_same_state(final_state(tmp_path / "run"), undisturbed[1])


def test_a_process_that_always_dies_does_not_restart_for_ever(
    undisturbed: dict[int, dict[str, Any]], config: Path, tmp_path: Path
) -> None:
    for attempt in (1, 2, 3):
        running = start_run(config, num_processes=2, prepare=ExitAtFeatures(rank=1))
        codes = running.wait()
        assert codes == [75 if attempt < 3 else 1, 1], running.errors()
        assert "another process of the run died" in running.errors()
    assert "3 attempts in a row ended without a new checkpoint" in running.errors()
    assert read_status(str(tmp_path / "run")).state == "failed"
    assert run(config, num_processes=2) == [0, 0], "once the cause is gone it runs on"
    assert_same_state(final_state(tmp_path / "run"), undisturbed[2])
