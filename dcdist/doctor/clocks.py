"""Clocks of the machines and of the storage: what compares times goes wrong where they differ."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dcdist.distributed.collectives import Collectives
from dcdist.doctor.check import Check, Problem, judge
from dcdist.doctor.machine import ranks_text

WARN_SECONDS = 2.0
FAIL_SECONDS = 60.0
_REMEDY = "set the clocks by NTP (timedatectl, chronyc tracking); S3 refuses requests that are 15 minutes off"


def check_clocks(collectives: Collectives, storage_folder: Path | None, now: Callable[[], float] = time.time) -> Check:
    """How far the clocks of all ranks lie apart, and that of the storage from rank 0's. Collective.

    Args:
        collectives: over all ranks.
        storage_folder: of the run directory's file system, on rank 0; None where it is no path, or none is given.
        now: seconds since 1970.
    """
    collectives.barrier()
    times = collectives.all_gather_objects(now())
    problems = []
    spread = max(times) - min(times)
    if spread > WARN_SECONDS:
        late = [rank for rank, each in enumerate(times) if abs(each - times[0]) > WARN_SECONDS]
        problems.append(_problem(spread, f"that of rank {ranks_text(late)} against rank 0"))
    parts = [f"{len(times)} processes within {spread:.3f} s"] if len(times) > 1 else []
    offset = storage_offset(storage_folder, now) if storage_folder and collectives.is_main else None
    if offset is not None:
        parts.append(f"storage within {abs(offset):.3f} s of rank 0")
        if abs(offset) > WARN_SECONDS:
            problems.append(_problem(abs(offset), f"that of the storage of {storage_folder} against rank 0"))
    if not parts:
        parts = ["one process and no path of storage: nothing to compare"]
    return judge("clocks", ", ".join(parts), problems)


def _problem(seconds: float, which: str) -> Problem:
    return Problem("FAIL" if seconds > FAIL_SECONDS else "warn", f"a clock is {seconds:.1f} s off, {which}", _REMEDY)


def storage_offset(folder: Path, now: Callable[[], float] = time.time) -> float:
    """Seconds by which a new file's time of change lies outside of the time in which it was written."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".dcdist-doctor-") as file:
        before = now()
        file.write(b"tick")
        file.flush()
        os.fsync(file.fileno())
        after = now()
        changed = os.stat(file.name).st_mtime  # noqa: PTH116
    return min(0.0, changed - before) + max(0.0, changed - after)
