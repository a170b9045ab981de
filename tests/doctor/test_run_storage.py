"""Where the run is to lie: storage that works, and each of its faults; folders, mounts and servers are real."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcdist.distributed.collectives import Collectives
from dcdist.doctor import run_storage, storage_trial
from dcdist.doctor.check import Budget, Check
from dcdist.doctor.run_storage import Scratch, check_storage, look
from dcdist.storage import LocalStorage
from tests.availability import unavailable
from tests.doctor.helpers import outcome, start, write_files


def storage_check(run_dir: object) -> Check:
    return check_storage(str(run_dir), Collectives(), Budget(60))


def test_storage_that_works_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("mine")
    for run_dir in (tmp_path / "run", tmp_path / "run/not/there/yet", f"file://{tmp_path}/run"):
        check = storage_check(run_dir)
        assert check.state == "ok", check
        pattern = r": \S+ MB/s, a small file in \S+ ms; exclusive creation, listing, commit and reading back work, "
        assert re.search(pattern + r"\d+\.\d GB free$", check.finding)
        assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.yaml"]
    assert (tmp_path / "run/config.yaml").read_text() == "mine"


def test_a_relative_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_check("runs/new").state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_storage_behind_a_url(s3_server: str) -> None:
    import fsspec

    assert s3_server
    check = storage_check("s3://bucket/runs/mine")
    assert check.state == "ok", check
    assert "free" not in check.finding
    assert fsspec.filesystem("s3").find("bucket") == []
    missing = storage_check("s3://no-such-bucket/run")
    assert missing.state == "FAIL"
    assert "bucket" in missing.finding
    assert "does the bucket exist, and are the credentials" in missing.remedy


def test_a_read_only_folder(mount: Callable[..., Path]) -> None:
    check = storage_check(mount("1m", "ro") / "run")
    assert check.state == "FAIL"
    assert "Read-only file system" in check.finding
    assert "mounted read-only: give another run.dir" in check.remedy


def test_a_full_folder(mount: Callable[..., Path]) -> None:
    folder = mount("1m")
    check = storage_check(folder)
    assert check.state == "FAIL"
    assert "No space left on device" in check.finding
    assert check.remedy == "make room there, or give another run.dir"
    assert list(folder.iterdir()) == []


def test_a_nearly_full_folder(mount: Callable[..., Path]) -> None:
    check = storage_check(mount("100m"))
    assert check.state == "warn"
    assert check.finding.startswith("less than 1 GB is free; ")
    assert "make room: a run keeps at least two checkpoints" in check.remedy


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = storage_check(tmp_path / "file/run")
    assert check.state == "FAIL"
    assert "Not a directory" in check.finding or "NotADirectory" in check.finding
    assert "a part of the path is a file" in check.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        unavailable("only root may become somebody else")
    script = f"""
import os
from dcdist.distributed.collectives import Collectives
from dcdist.doctor.check import Budget
from dcdist.doctor.run_storage import check_storage
os.seteuid(65534)
print("\\n".join(check_storage({str(tmp_path / "run")!r}, Collectives(), Budget(30)).lines()))
"""
    for folder in (tmp_path, *tmp_path.parents):
        assert folder.stat().st_uid == 0
    tmp_path.chmod(0o755)
    code, output = outcome(start(script))
    assert code == 0
    assert "Permission denied" in output
    assert "remedy: give a run.dir that this user may write to" in output


def test_creation_that_is_not_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "create_exclusive", LocalStorage.write_bytes)
    check = storage_check(tmp_path)
    assert check.state == "FAIL"
    assert "a second exclusive creation of a file was not refused" in check.finding
    assert "give run.dir on other storage" in check.remedy
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = LocalStorage.open_for_reading

    def damaged(self: LocalStorage, path: str) -> Any:
        (self.local_path(path)).write_bytes(b"\0" * self.size(path))
        return intact(self, path)

    monkeypatch.setattr(LocalStorage, "open_for_reading", damaged)
    check = storage_check(tmp_path)
    assert check.state == "FAIL"
    assert "has changed: its SHA-256" in check.finding
    assert list(tmp_path.iterdir()) == []


def test_slow_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_trial, "MIN_BYTES_PER_SECOND", 1e18)
    check = storage_check(tmp_path)
    assert check.state == "warn"
    assert re.match(r"a checkpoint of 500 MB takes \d+ s; ", check.finding)
    assert "sbatch --signal=USR2@SECONDS" in check.remedy


def test_a_folder_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "remove_tree", lambda *_: None)
    check = storage_check(tmp_path)
    assert check.state == "FAIL"
    assert "cannot be removed" in check.finding
    assert "remove it by hand" in check.remedy


SILENT_SERVER = """
import os
from dcdist.distributed.collectives import Collectives
from dcdist.doctor.check import Budget
from dcdist.doctor import run_storage
from dcdist.doctor.run_storage import check_storage
import s3fs
run_storage.REMOVE_SECONDS = 0.5
print("\\n".join(check_storage("s3://bucket/run", Collectives(), Budget(30), write_seconds=1.5).lines()), flush=True)
os._exit(0)
"""


def test_storage_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        script = start(
            SILENT_SERVER,
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
            AWS_DEFAULT_REGION="us-east-1",
        )
        _, output = outcome(script, 60)
    assert output.startswith("FAIL  run storage    s3://bucket/run: did not end within 2 s")
    assert "remedy: does the storage answer?" in output


def test_storage_of_two_processes(of_two_processes: list[dict[str, list[Check]]], two_folders: Path) -> None:
    shared, local, broken = of_two_processes[0]["storage"]
    assert shared.state == "ok", shared
    assert shared.finding.endswith(", seen by all 2 processes")
    host, run_dir = socket.gethostname(), f"{two_folders}/b/run"
    assert local.state == "FAIL"
    assert f"rank 1 (on {host}; rank 0 is on {host}) does not see what rank 0 wrote under {run_dir}" in local.finding
    assert "a file system that all machines mount" in local.remedy
    assert broken.state == "FAIL"
    assert "a part of the path is a file" in broken.remedy
    assert [check.state for check in of_two_processes[1]["storage"]] == ["ok", "FAIL", "FAIL"]
    assert sorted(path.name for path in two_folders.rglob("*")) == ["a", "b", "file"]


def test_what_another_rank_finds_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_storage, "LOOK_SECONDS", 0.2)
    scratch = Scratch("scratch", levels=1)
    run_dir = f"{tmp_path}/run"
    missing = look(run_dir, scratch, 1)
    assert missing is not None
    assert missing.finding == f"does not see what rank 0 wrote under {run_dir}: is it local to each machine?"
    assert list(tmp_path.iterdir()) == []
    write_files(tmp_path, {"scratch/seen-by-all": "seen-by-all"})
    assert look(run_dir, scratch, 1) is None
    assert (tmp_path / "scratch/ranks/1").exists()
    write_files(tmp_path, {"scratch/seen-by-all": "old"})
    changed = look(run_dir, scratch, 1)
    assert changed is not None
    assert "reads other bytes than rank 0 wrote" in changed.finding
    write_files(tmp_path, {"scratch/seen-by-all": "seen-by-all"})
    monkeypatch.setattr(LocalStorage, "create_exclusive", LocalStorage.write_bytes)
    taken = look(run_dir, scratch, 1)
    assert taken is not None
    assert "could create a file that rank 0 has created" in taken.finding
    assert "s3://bucket/folder" in taken.remedy
