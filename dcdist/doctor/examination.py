"""The checks in their order, on one process of as many as the launcher started."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import torch

from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place
from dcdist.doctor.check import Budget, Check, one_line
from dcdist.doctor.clocks import check_clocks
from dcdist.doctor.group import JOIN_SECONDS, check_nccl, leave_group, meet, nccl_remedy
from dcdist.doctor.machine import (
    check_cores,
    check_device,
    check_gpus,
    check_same_versions,
    check_versions,
    look_around,
)
from dcdist.doctor.probe import Probe
from dcdist.doctor.report import Findings, has_failed, merge, summary
from dcdist.doctor.run_storage import check_storage, existing_folder
from dcdist.doctor.surroundings import (
    check_launcher,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_signals,
)
from dcdist.errors import ExitCode

T = TypeVar("T")

ALL_SECONDS = 52.0  # with the imports; a check that has no time left says so
_PROBE_SECONDS = 25.0
_DEVICE_SECONDS = 12.0
_NCCL_SECONDS = 15.0
_MACHINE_REMEDY = "this should not happen: /proc or /sys of this machine are unusual"


class _Peers:
    """The other processes of the job, as long as they answer."""

    def __init__(self, collectives: Collectives, budget: Budget) -> None:
        self.collectives = collectives
        self.lost: Check | None = None
        self._budget = budget

    def together(self, doing: str, function: Callable[[], T]) -> T | None:
        """The value of a collective function; None from the first time on that one of them fails.

        Nothing collective can follow that: who has failed and who still waits cannot be told apart any more.
        """
        if self.lost is None:
            try:
                return self._budget.call(self._budget.left(), function)
            except Exception as error:
                remedy = "is another process of the job gone, or slower by far? See what it prints"
                self.lost = Check("peers", "FAIL", f"lost while {doing}: {one_line(error)}", remedy)
        return None


def run_checks(run_dir: str | None, wanted: str, probe: Probe, began: float) -> ExitCode:
    """See dcdist.doctor.examine; `began` is when that was called (time.monotonic)."""
    import_seconds = time.monotonic() - began
    budget = Budget(ALL_SECONDS - import_seconds)
    place, launcher = check_launcher()
    met, meeting = meet(place, budget, JOIN_SECONDS)
    peers = _Peers(met or Collectives(), budget)  # alone there is still much to look at
    left = peers.together("meeting", lambda: peers.collectives.all_gather_objects(budget.left()))
    budget.shorten(min(left or [ALL_SECONDS]))  # one end for all
    probed = probe.checks(min(_PROBE_SECONDS, budget.left()))  # before this process takes a GPU that may be exclusive
    device, device_check = _device(wanted, place, budget)
    facts = look_around(place, device)
    machine = (
        budget.guard(name, 5.0, function, _MACHINE_REMEDY)
        for name, function in (
            ("open files", check_open_files),
            ("shared memory", check_shared_memory),
            ("memory", check_memory),
        )
    )
    own = Findings(
        facts,
        (
            launcher,
            check_versions(facts.versions, import_seconds),
            *probed,
            device_check,
            *machine,
            check_signals(),
            meeting,
        ),
    )
    processes = peers.together("gathering what all found", lambda: peers.collectives.all_gather_objects(own)) or [own]
    checks = merge(processes)
    if met is not None:
        checks += _compare(processes, peers, device, budget)
    checks += _time_and_storage(run_dir, peers, budget)
    failed = peers.together("agreeing on the end", lambda: peers.collectives.any_rank(has_failed(checks)))
    if peers.lost is not None:
        checks.append(peers.lost)
    code = ExitCode.FAILURE if failed or has_failed(checks) else ExitCode.DONE
    _print(checks, place, processes, is_alone=met is None or peers.lost is not None, seconds=time.monotonic() - began)
    if peers.lost is not None or not leave_group(budget) or budget.has_left_behind():
        _end(code, probe)
    return code


def _device(wanted: str, place: Place, budget: Budget) -> tuple[torch.device, Check]:
    try:
        return budget.call(_DEVICE_SECONDS, lambda: check_device(wanted, place))
    except Exception as error:
        remedy = "does nvidia-smi answer on this machine? If not, its driver must be mended, or another machine taken"
        return torch.device("cpu"), Check("device", "FAIL", one_line(error), remedy)


def _compare(processes: Sequence[Findings], peers: _Peers, device: torch.device, budget: Budget) -> list[Check]:
    """What concerns the processes together; the same on all ranks."""
    if peers.lost is not None:
        return []
    facts = [process.facts for process in processes]
    gpus = check_gpus(facts)
    checks = [check_cores(facts), gpus]
    if len(facts) > 1:
        checks.append(check_same_versions(facts))
        if gpus.state != "FAIL" and device.type == "cuda":
            # Not through peers: gloo goes on where NCCL hangs.
            checks.append(
                budget.guard("NCCL", _NCCL_SECONDS, lambda: check_nccl(peers.collectives, device), nccl_remedy())
            )
    return checks


def _time_and_storage(run_dir: str | None, peers: _Peers, budget: Budget) -> list[Check]:
    checks = []
    path = None
    if run_dir is not None:
        storage = peers.together("trying the storage", lambda: check_storage(run_dir, peers.collectives, budget))
        if storage is not None:
            checks.append(storage)
            path = run_dir if storage.state != "FAIL" else None

    def clocks() -> Check:
        folder = existing_folder(path) if path is not None and peers.collectives.is_main else None
        return check_clocks(peers.collectives, folder)

    compared = peers.together("comparing clocks", clocks)
    return [*checks, compared] if compared is not None else checks


def _print(
    checks: Sequence[Check], place: Place, processes: Sequence[Findings], *, is_alone: bool, seconds: float
) -> None:
    """On rank 0 all; on others what is wrong with them, where rank 0 cannot say it."""
    lines: list[str] = []
    if place.rank == 0:
        for check in checks:
            lines += check.lines()
        machines = {process.facts.machine for process in processes}
        lines.append(summary(checks, len(processes), len(machines), seconds))
        if len(processes) < place.world_size:
            lines.append(
                f"of {place.world_size} processes these could be asked; what the others found they print themselves"
            )
    elif is_alone:
        for check in checks:
            if check.state != "ok":
                lines += check.lines(f"rank {place.rank} on {processes[0].facts.host}: ")
    if lines:
        print("\n".join(lines), flush=True)


def _end(code: ExitCode, probe: Probe) -> NoReturn:
    """At once: threads that hang, and a group whose peers are gone, are not to be waited for."""
    probe.close()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))
