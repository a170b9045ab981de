"""Whether a run can live where it is to write: tried by all ranks in a fresh folder there, which is removed again."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from dcdist.distributed.collectives import Collectives
from dcdist.doctor.check import Budget, Check, Problem, judge
from dcdist.doctor.machine import ranks_text
from dcdist.doctor.storage_trial import SEEN, Written, exercise, problem_of, remove, warnings_of
from dcdist.storage import Storage, open_storage

WRITE_SECONDS = 15.0
LOOK_SECONDS = 5.0  # attributes of network file systems are kept for some seconds
REMOVE_SECONDS = 5.0
_NOT_SHARED = "give run.dir on a file system that all machines mount, or on object storage (s3://bucket/folder)"


@dataclass(frozen=True)
class Scratch:
    """A folder that is no run's, where all ranks look."""

    name: str
    levels: int  # how many folders above the run directory it is made


def existing_folder(run_dir: str) -> Path | None:
    """The run directory, or the nearest folder above it that exists; None behind a URL."""
    local = open_storage(run_dir).local_path()
    if local is None:
        return None
    return next(folder for folder in (local.absolute(), *local.absolute().parents) if folder.exists())


def choose_scratch(run_dir: str) -> Scratch:
    """A new name, in `existing_folder`."""
    local, folder = open_storage(run_dir).local_path(), existing_folder(run_dir)
    levels = len(local.absolute().parts) - len(folder.parts) if local and folder else 0
    return Scratch(f".dcdist-doctor-{secrets.token_hex(6)}", levels)


def open_scratch(run_dir: str, scratch: Scratch) -> Storage:
    """The folder as this process sees it; the first write creates it."""
    local = open_storage(run_dir).local_path()
    if local is None:
        return open_storage(f"{run_dir.rstrip('/')}/{scratch.name}")
    folder = (local.absolute(), *local.absolute().parents)[scratch.levels]
    return open_storage(folder / scratch.name)


def check_storage(
    run_dir: str, collectives: Collectives, budget: Budget, write_seconds: float = WRITE_SECONDS
) -> Check:
    """On rank 0 all that a run does there, on the others whether they see it; what counts is rank 0's. Collective.

    Storage that fails or hangs on one rank does so in bounded time, and all are told: none waits for it.
    """
    scratch, written = collectives.broadcast_object(
        _write(run_dir, budget, write_seconds) if collectives.is_main else (None, None)
    )
    problems = [written] if isinstance(written, Problem) else []
    if scratch is not None and isinstance(written, Written):
        problems += check_seen(run_dir, scratch, collectives, budget) + warnings_of(written)
    if scratch is not None and collectives.is_main:
        problems += _clean_up(run_dir, scratch, budget)
    fine = run_dir
    if isinstance(written, Written):
        fine += f": {written.text()}"
        if collectives.world_size > 1 and not problems:
            fine += f", seen by all {collectives.world_size} processes"
    return judge("run storage", fine, problems)


def _write(run_dir: str, budget: Budget, seconds: float) -> tuple[Scratch | None, Written | Problem]:
    try:
        scratch = budget.call(seconds, lambda: choose_scratch(run_dir))
    except Exception as error:
        return None, problem_of(error, run_dir)
    try:
        return scratch, budget.call(seconds, lambda: exercise(open_scratch(run_dir, scratch)))
    except Exception as error:
        return scratch, problem_of(error, run_dir)


def _clean_up(run_dir: str, scratch: Scratch, budget: Budget) -> list[Problem]:
    try:
        budget.call(REMOVE_SECONDS, lambda: remove(open_scratch(run_dir, scratch)))
    except Exception as error:
        finding = f"the folder {scratch.name} cannot be removed: {problem_of(error, run_dir).finding}"
        return [Problem("FAIL", finding, "remove it by hand; a run removes checkpoints that it does not keep")]
    return []


def check_seen(run_dir: str, scratch: Scratch, collectives: Collectives, budget: Budget) -> list[Problem]:
    """What is wrong between the ranks: what rank 0 wrote must be there for all, and the other way round. Collective."""
    problem = None
    if not collectives.is_main:
        try:
            problem = budget.call(WRITE_SECONDS, lambda: look(run_dir, scratch, collectives.rank))
        except Exception as error:
            problem = problem_of(error, run_dir)
    gathered = collectives.all_gather_objects((socket.gethostname(), problem))
    ranks_with: dict[Problem, list[int]] = {}
    for rank, (_, found) in enumerate(gathered):
        if found is not None:
            ranks_with.setdefault(found, []).append(rank)
    problems = []
    for found, ranks in ranks_with.items():
        hosts = ", ".join(sorted({gathered[rank][0] for rank in ranks}))
        finding = f"rank {ranks_text(ranks)} (on {hosts}; rank 0 is on {gathered[0][0]}) {found.finding}"
        problems.append(found._replace(finding=finding))
    if collectives.is_main:
        expected = {str(rank) for rank, (_, found) in enumerate(gathered) if rank > 0 and found is None}
        try:
            missing = budget.call(WRITE_SECONDS, lambda: _missing(open_scratch(run_dir, scratch), expected))
        except Exception as error:
            problems.append(problem_of(error, run_dir))
        else:
            if missing:
                finding = f"rank 0 does not see what rank {ranks_text(sorted(map(int, missing)))} wrote"
                problems.append(Problem("FAIL", finding, _NOT_SHARED))
    return problems


def look(run_dir: str, scratch: Scratch, rank: int) -> Problem | None:
    """On a rank other than 0: what is wrong with the folder that rank 0 has made. Writes there, and nowhere else."""
    storage = open_scratch(run_dir, scratch)
    ends = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            content = storage.read_bytes(SEEN)
            break
        except FileNotFoundError:
            if time.monotonic() > ends:
                finding = f"does not see what rank 0 wrote under {run_dir}: is it local to each machine?"
                return Problem("FAIL", finding, _NOT_SHARED)
            time.sleep(0.1)
    if content != SEEN.encode():
        return Problem("FAIL", f"reads other bytes than rank 0 wrote under {run_dir}", _NOT_SHARED)
    try:
        storage.create_exclusive(SEEN, b"taken")
        return Problem("FAIL", "could create a file that rank 0 has created: two attempts could own a run", _NOT_SHARED)
    except FileExistsError:
        pass
    storage.write_bytes(f"ranks/{rank}", b"")
    return None


def _missing(storage: Storage, expected: set[str]) -> set[str]:
    ends = time.monotonic() + LOOK_SECONDS
    while True:
        missing = expected - set(storage.list("ranks"))
        if not missing or time.monotonic() > ends:
            return missing
        time.sleep(0.1)
