"""Which process of the run this is, as the launcher says in the environment. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dcdist.errors import UsageError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Of the step, not of the job: a batch script is task 0 of as many as the job has, without a step of its own.
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")


@dataclass(frozen=True)
class Place:
    """Which process of the run this is."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def describes_process_group(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process as one of several (torchrun's variables, or a SLURM step's).

    A step of one task describes none: `srun --pty dcdist train` may still start a process for each GPU.
    """
    return "RANK" in environment or "WORLD_SIZE" in environment or _is_slurm_task(environment)


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    return "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """That of torchrun's variables (every launcher of dcdist sets them), else of a SLURM step, else of one alone.

    Raises:
        UsageError: a variable is missing or no number, or the rank is none of the world's.
    """
    if not describes_process_group(environment):
        return Place(0, 1, 0, 1)
    is_torchrun = "RANK" in environment or "WORLD_SIZE" in environment
    names = _TORCHRUN if is_torchrun else _SLURM
    given = ", ".join(f"{name}={environment.get(name)!r}" for name in names)
    try:
        place = _torchrun_place(environment) if is_torchrun else _slurm_place(environment)
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(f"the environment describes no process group: {given}; expected numbers") from error
    if not 0 <= place.rank < place.world_size:
        raise UsageError(f"the environment describes no process group: {given}; expected 0 <= {names[0]} < {names[1]}")
    return place


def _torchrun_place(environment: Mapping[str, str]) -> Place:
    return Place(
        int(environment["RANK"]),
        int(environment["WORLD_SIZE"]),
        int(environment.get("LOCAL_RANK", "0")),
        int(environment.get("LOCAL_WORLD_SIZE", "1")),
    )


def _slurm_place(environment: Mapping[str, str]) -> Place:
    rank, num_tasks, local_rank, _, node = (environment[name] for name in _SLURM)
    tasks_of_nodes = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    return Place(int(rank), int(num_tasks), int(local_rank), tasks_of_nodes[int(node)])


def expand_counts(text: str) -> list[int]:
    """SLURM's short form of a number a node: "2(x3),1" is [2, 2, 2, 1]. Raises ValueError for anything else."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"{text!r} is no list of numbers like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def meeting_point(environment: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Where a SLURM step's processes may meet: rank 0's node, as SLURM names it, and a port; None outside of steps.

    The port lies below those that systems give to outgoing connections; steps that share a node
    take different ones, and so do the starts of one job.
    """
    if not _is_slurm_task(environment) or "SLURM_STEP_NODELIST" not in environment:
        return None
    numbers = (environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    job, step, restarts = (int(number) if number.isdigit() else 0 for number in numbers)
    return first_host(environment["SLURM_STEP_NODELIST"]), 20_000 + (job * 101 + step * 7 + restarts) % 12_000


def first_host(nodes: str) -> str:
    """Of SLURM's short form of a list of nodes: "gpu[03-07,11],big1" begins with gpu03."""
    match = re.match(r"(?:\[[^]]*\]|[^],[])+", nodes)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", match[0] if match else nodes)
