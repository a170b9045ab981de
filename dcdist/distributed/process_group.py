"""From the environment that a launcher describes to a process group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dcdist.distributed.collectives import Collectives, noticing_lost_peers
from dcdist.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Which process of the run this is."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Those of torchrun's variables (the local launcher sets them too), else SLURM's, else one process alone.

    Raises:
        UsageError: a variable is missing or no number, or the rank is none of the world's.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
    else:
        return Place(0, 1, 0, 1)
    defaults = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    defaults |= {"SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1"}
    given = ", ".join(f"{name}={environment.get(name)!r}" for name in names)
    try:
        place = Place(*(int(environment.get(name, defaults.get(name, ""))) for name in names))
    except ValueError as error:
        raise UsageError(f"the environment describes no process group: {given}; expected numbers") from error
    if not 0 <= place.rank < place.world_size:
        raise UsageError(f"the environment describes no process group: {given}; expected 0 <= {names[0]} < {names[1]}")
    return place


def join(
    place: Place, device: torch.device, join_timeout_seconds: float, collective_timeout_seconds: float
) -> Collectives:
    """Joins the run's other processes: gloo for CPU tensors, NCCL for CUDA ones. MASTER_ADDR and MASTER_PORT say where.

    The two times differ by far: a peer that has not come in some minutes has died on its way, one that has come may
    be busy for long before it answers.

    Raises:
        UsageError: the meeting point is missing from the environment.
        PeerLost: not all processes came there in time.
    """
    if place.world_size == 1:
        return Collectives()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"{place.world_size} processes need {' and '.join(missing)} in the environment to meet")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with noticing_lost_peers():
        meeting = dist.rendezvous(
            "env://", place.rank, place.world_size, timeout=timedelta(seconds=join_timeout_seconds)
        )
        store, _, _ = next(meeting)
        dist.init_process_group(
            backend,
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=join_timeout_seconds),
        )
        store.set_timeout(timedelta(seconds=collective_timeout_seconds))  # NCCL meets there when it is first used
        _set_timeout(timedelta(seconds=collective_timeout_seconds))
    return Collectives(place.rank, place.world_size)


def _set_timeout(timeout: timedelta) -> None:
    """Of the default group; torch before 2.14 has it under another name."""
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(timeout, dist.group.WORLD)
    else:
        dist.distributed_c10d._set_pg_timeout(timeout, dist.group.WORLD)
