"""What every process of a run does: joins the others, then an attempt at the run."""

from __future__ import annotations

import torch

from dcdist.attempt_description import describe_attempt
from dcdist.config.schema import ExperimentConfig
from dcdist.data.loader_processes import start_server
from dcdist.devices import devices_of_machine, num_loader_processes
from dcdist.distributed.place import Place
from dcdist.engine.preemption import SignalFlag
from dcdist.errors import DcdistError, ExitCode, PeerLost
from dcdist.member import Member, run_member
from dcdist.run_directory import RunDirectory
from dcdist.session import Session
from dcdist.verdict import without_progress


def work(config: ExperimentConfig, signals: SignalFlag) -> ExitCode:
    """Runs this process's share of an experiment to its end, and says with what it ended."""

    def share(member: Member) -> ExitCode:
        devices = devices_of_machine(member.device, member.place)
        return Session(config, member.collectives, devices, signals).run()

    def did_not_meet(place: Place, device: torch.device, error: PeerLost) -> DcdistError:
        # An attempt that came to nothing: without its record such starts would go on for ever.
        run_directory = RunDirectory(config.run.dir)
        attempt = run_directory.begin_attempt(describe_attempt(place.world_size, device))
        attempt.record_end(error.exit_code, f"the processes did not meet: {error}")
        return without_progress(run_directory, error)

    def prepare(device: torch.device) -> None:
        if num_loader_processes(config.data, device) > 0:
            start_server()

    return run_member(config.launch, share, prepare=prepare, did_not_meet=did_not_meet)
