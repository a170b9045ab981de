"""What every launched process runs: environment -> process group -> an attempt at the run -> exit code."""

from __future__ import annotations

import gc
import logging
import os
import sys
from typing import NoReturn

import torch
import torch.distributed as dist

from dcdist.attempt_description import describe_attempt
from dcdist.config.schema import ExperimentConfig
from dcdist.data.loader_processes import start_server
from dcdist.devices import devices_of_machine, num_loader_processes, take_device
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place, read_place
from dcdist.distributed.process_group import join
from dcdist.engine.preemption import SignalFlag
from dcdist.errors import DcdistError, ExitCode, PeerLost, UsageError
from dcdist.run_directory import RunDirectory
from dcdist.session import Session, without_progress


def work(config: ExperimentConfig, signals: SignalFlag) -> ExitCode:
    """Runs this process's share of an experiment to its end, and says with what it ended."""
    place = read_place()
    try:
        device = take_device(config.launch, place)
        if num_loader_processes(config.data, device) > 0:
            start_server()
        collectives = _join(config, place, device)
        code = Session(config, collectives, devices_of_machine(device, place), signals).run()
    except DcdistError as error:
        _say(place, error)
        code = error.exit_code
    if place.world_size > 1:
        _leave(code)
    return code


def _join(config: ExperimentConfig, place: Place, device: torch.device) -> Collectives:
    try:
        return join(place, device, config.launch.join_timeout_seconds, config.launch.collective_timeout_seconds)
    except PeerLost as error:
        if place.rank != 0:
            raise
        # An attempt that came to nothing: without its record such starts would go on for ever.
        run_directory = RunDirectory(config.run.dir)
        attempt = run_directory.begin_attempt(describe_attempt(place.world_size, device))
        attempt.record_end(error.exit_code, f"the processes did not meet: {error}")
        raise without_progress(run_directory, error) from error


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
