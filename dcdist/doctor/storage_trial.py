"""What a run asks of its storage, done once on one process: the operations, their speed, the remedies."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from dcdist.commits import COMMIT_FILE, CheckpointName, Commit, StoredFile, read_commit, verify_files
from dcdist.doctor.check import DidNotEndError, Problem, one_line
from dcdist.storage import Storage

SEEN = "seen-by-all"  # name and content of the file that the other ranks look for
MIN_FREE_BYTES = 10**9
MIN_BYTES_PER_SECOND = 5e6
_SMALL_FILES = 5
_SIZES = (1 << 20, 1 << 24)
_SLOW_SECONDS = 0.5  # storage that takes so long for the first size is not asked for the second

_LOCAL_REMEDIES = {
    errno.ENOSPC: "make room there, or give another run.dir",
    errno.EDQUOT: "your quota is used up (quota -s): make room, or give another run.dir",
    errno.EACCES: "give a run.dir that this user may write to",
    errno.EPERM: "give a run.dir that this user may write to",
    errno.EROFS: "it is mounted read-only: give another run.dir",
    errno.ENOTDIR: "a part of the path is a file: give another run.dir",
    errno.ENOENT: "is the file system mounted on this machine, the path right?",
    errno.ESTALE: "the mount is stale on this machine: have it mounted anew",
}
_URL_REMEDY = (
    "does the bucket exist, and are the credentials (AWS_PROFILE or AWS_ACCESS_KEY_ID) and AWS_ENDPOINT_URL right on "
    "every machine?"
)


class StorageFaultError(Exception):
    """The storage does what a run cannot live with; `remedy` says what to do."""

    def __init__(self, message: str, remedy: str = "give run.dir on other storage") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Written:
    """How fast the storage was."""

    latency: float  # seconds until a small file is stored
    rate: float  # bytes a second of a large one
    free: int | None  # bytes, of a path

    def text(self) -> str:
        """For the report."""
        free = "" if self.free is None else f", {self.free / 1e9:.1f} GB free"
        speed = f"{self.rate / 1e6:.3g} MB/s, a small file in {self.latency * 1e3:.2g} ms"
        return f"{speed}; exclusive creation, listing, commit and reading back work{free}"


def exercise(storage: Storage) -> Written:
    """All operations of a run's files and of a checkpoint; the folder with the file SEEN in it stays.

    Raises:
        StorageFaultError: an operation did something else than it should.
        OSError: the storage failed.
    """
    latency = _try_small_files(storage)
    _try_exclusive_creation(storage)
    rate = _try_commit(storage)
    path = storage.local_path()
    return Written(latency, rate, None if path is None else shutil.disk_usage(path).free)


def _try_small_files(storage: Storage) -> float:
    times = []
    for number in range(_SMALL_FILES):
        began = time.perf_counter()
        storage.write_bytes("small", b"%d" % number)
        times.append(time.perf_counter() - began)
        if storage.read_bytes("small") != b"%d" % number:
            raise StorageFaultError("a file that was replaced reads as it was before")
    return statistics.median(times)


def _try_exclusive_creation(storage: Storage) -> None:
    storage.create_exclusive(SEEN, SEEN.encode())
    try:
        storage.create_exclusive(SEEN, b"taken")
    except FileExistsError:
        pass
    else:
        raise StorageFaultError(
            "a second exclusive creation of a file was not refused: two attempts could own a run",
            "the server must honour If-None-Match (S3 does); give run.dir on other storage",
        )
    if (names := storage.list()) != sorted(["small", SEEN]):
        raise StorageFaultError(f"a listing shows {names} instead of what was written")


def _try_commit(storage: Storage) -> float:
    """Bytes a second of the data of a checkpoint, which is committed and verified as a resume does it."""
    name, files, rate = CheckpointName(0, "train", 0), {}, 0.0
    for size in _SIZES:
        data = os.urandom(size)
        began = time.perf_counter()
        with storage.open_for_writing(f"{name.folder}/{size}.bin") as handle:
            handle.write(data)
        seconds = time.perf_counter() - began
        rate = size / seconds
        files[f"{size}.bin"] = StoredFile(size, hashlib.sha256(data).hexdigest())
        if seconds > _SLOW_SECONDS:
            break
    commit = Commit(name, {}, files, 1, "doctor", datetime.now(UTC).isoformat(timespec="seconds"))
    storage.write_bytes(f"{name.folder}/{COMMIT_FILE}", commit.to_bytes())
    found = read_commit(storage, name)
    verify_files(storage, found)
    if found != commit:
        raise StorageFaultError("a commit reads otherwise than it was written")
    return rate


def remove(storage: Storage) -> None:
    """Removes the folder with all that is in it, and looks whether it is gone."""
    try:
        storage.remove_tree("")
    except NotADirectoryError:  # nothing could be made there
        return
    if left := storage.list():
        raise StorageFaultError(f"{left} is still listed after its removal")


def warnings_of(written: Written) -> list[Problem]:
    """What works, but not for long or not fast."""
    problems = []
    if written.free is not None and written.free < MIN_FREE_BYTES:
        problems.append(Problem("warn", "less than 1 GB is free", "make room: a run keeps at least two checkpoints"))
    if written.rate < MIN_BYTES_PER_SECOND:
        finding = f"a checkpoint of 500 MB takes {5e8 / written.rate:.0f} s"
        remedy = (
            "faster storage for run.dir, or as much time between a preemption's signal and its kill "
            "(sbatch --signal=USR2@SECONDS, terminationGracePeriodSeconds)"
        )
        problems.append(Problem("warn", finding, remedy))
    return problems


def problem_of(error: Exception, run_dir: str) -> Problem:
    """What an error means for whoever chose the run directory."""
    if isinstance(error, StorageFaultError):
        return Problem("FAIL", str(error), error.remedy)
    if isinstance(error, DidNotEndError):
        remedy = "does the storage answer? Try `ls` on the mount, or the server's address (AWS_ENDPOINT_URL)"
        return Problem("FAIL", f"{run_dir}: {error}", remedy)
    if "://" in run_dir and not run_dir.startswith("file://"):
        is_uninstalled = "install s3fs" in str(error).lower()
        return Problem("FAIL", one_line(error), "pip install 'dcdist[s3]'" if is_uninstalled else _URL_REMEDY)
    number = error.errno if isinstance(error, OSError) else None
    return Problem("FAIL", one_line(error), _LOCAL_REMEDIES.get(number or 0, "give another run.dir"))
