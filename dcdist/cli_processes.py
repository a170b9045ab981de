"""Commands that several processes may share: joins those that a launcher has started, or starts them here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dcdist.errors import ExitCode

if TYPE_CHECKING:
    from dcdist.member import Member

NumProcesses = Annotated[
    int | None,
    typer.Option(help="processes on this machine, by default one a GPU, else one; torchrun's or srun's are joined"),
]


def share_out(
    context: typer.Context, num_processes: int | None, device: str, share: Callable[[Member], ExitCode]
) -> typer.Exit:
    """Runs a command's share in this process, or the command in several; what to raise in the end.

    Args:
        context: of the command; its `obj` holds the arguments that the command line was called with, if not sys.argv's.
        num_processes: on this machine.
        device: auto, cpu or cuda.
        share: what each process does.
    """
    from dcdist.config.schema import LaunchSection
    from dcdist.distributed.place import describes_process_group
    from dcdist.errors import UsageError
    from dcdist.launch.local import LocalLauncher, local_job

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device={device!r} is unknown: auto, cpu or cuda")
    if num_processes is not None and num_processes < 1:
        raise UsageError(f"--num-processes={num_processes}: at least 1")
    launch = LaunchSection.model_validate({"device": device, "num_processes": num_processes or "auto"})
    job = local_job(launch, context.obj or sys.argv[1:])
    if not describes_process_group() and job.num_processes * job.num_nodes > 1:
        return typer.Exit(LocalLauncher().submit(job).wait())
    from dcdist.member import run_member

    return typer.Exit(run_member(launch, share))
