"""A process as one of several, or alone: takes its device, joins the others, does its share, and leaves."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist

from dcdist.config.schema import LaunchSection
from dcdist.devices import take_device
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place, read_place
from dcdist.distributed.process_group import join
from dcdist.errors import DcdistError, ExitCode, PeerLost, RunError, UsageError


@dataclass(frozen=True)
class Member:
    """This process among those that were started together."""

    place: Place
    device: torch.device
    collectives: Collectives


def run_member(
    launch: LaunchSection,
    share: Callable[[Member], ExitCode],
    prepare: Callable[[torch.device], None] = lambda _device: None,
    did_not_meet: Callable[[Place, torch.device, PeerLost], DcdistError] | None = None,
) -> ExitCode:
    """Does this process's share and says with what it ended; the error, where there is one, goes to the terminal.

    One of several processes does not return: it ends here.

    Args:
        launch: device, threads and times.
        share: what to do once all have met.
        prepare: what may begin before the others are there.
        did_not_meet: on rank 0, what it means that not all came; by default the error itself.
    """
    place = read_place()
    try:
        device = take_device(launch, place)
        prepare(device)
        try:
            collectives = join(place, device, launch.join_timeout_seconds, launch.collective_timeout_seconds)
        except PeerLost as error:
            if place.rank != 0 or did_not_meet is None:
                raise
            raise did_not_meet(place, device, error) from error
        code = share(Member(place, device, collectives))
    except DcdistError as error:
        _say(place, error)
        code = error.exit_code
    except OSError as error:  # a full disk, a file system that fails
        failed = RunError(f"files cannot be read or written: {error}")
        _say(place, failed)
        code = failed.exit_code
    if place.world_size > 1:
        _leave(code)
    return code


def _say(place: Place, error: DcdistError) -> None:
    # One of each machine says what its processes know (a machine may lack a GPU that others have), except that a rank
    # that lost its peers may be the only one left.
    if place.local_rank == 0 or isinstance(error, PeerLost):
        prefix = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        print(f"dcdist: {prefix}{error}", file=sys.stderr, flush=True)


def _leave(code: ExitCode) -> NoReturn:
    """Ends the process at once: taking down a process group at the interpreter's end can wait for ever for peers that
    are gone, and was seen to abort a run that was done ("terminate called without an active exception").
    """
    if code is ExitCode.DONE:
        dist.destroy_process_group()
    gc.collect()  # semaphores of the loader's queues, which would be reported as leaked
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))
