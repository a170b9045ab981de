"""From the environment that a launcher describes to a process group."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from dcdist.distributed.collectives import Collectives, noticing_lost_peers
from dcdist.distributed.place import Place, meeting_point
from dcdist.errors import UsageError


def join(
    place: Place, device: torch.device, join_timeout_seconds: float, collective_timeout_seconds: float
) -> Collectives:
    """Joins the run's other processes: gloo for CPU tensors, NCCL for CUDA ones. MASTER_ADDR and MASTER_PORT say where,
    else SLURM's variables of the step.

    The two times differ by far: a peer that has not come in some minutes has died on its way, one that has come may
    be busy for long before it answers.

    Raises:
        UsageError: nothing in the environment says where they meet.
        PeerLost: not all processes came there in time.
    """
    if place.world_size == 1:
        return Collectives()
    _settle_meeting_point(place)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    interface = interface_towards(os.environ["MASTER_ADDR"])
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
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
    return Collectives(place.rank, place.world_size, store)


def _settle_meeting_point(place: Place) -> None:
    """Sets MASTER_ADDR and MASTER_PORT where srun has started the processes and nobody has said."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    found = meeting_point()
    if missing and found is None:
        raise UsageError(
            f"{place.world_size} processes need {' and '.join(missing)} in the environment to meet: set MASTER_ADDR to "
            "rank 0's machine and MASTER_PORT to a free port there, or start them by srun or torchrun"
        )
    if "MASTER_ADDR" in missing and found is not None:
        os.environ["MASTER_ADDR"] = _address_of_node(found[0])
    if "MASTER_PORT" in missing and found is not None:
        os.environ["MASTER_PORT"] = str(found[1])


def _address_of_node(node: str) -> str:
    """The node's name where the network knows it, as almost everywhere; else the address that SLURM has for it."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", node], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return node
    address = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return address[1] if address else node


def interface_towards(host: str) -> str | None:
    """The network interface that leads to a host; None where that is not to be found out.

    Gloo takes the one that holds the address of this machine's name, which many systems give as 127.0.1.1: processes
    on other machines would wait for ever for what listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: chooses the route, sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return str(name)
    return None


def _set_timeout(timeout: timedelta) -> None:
    """Of the default group; torch before 2.14 has it under another name."""
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(timeout, dist.group.WORLD)
    else:
        dist.distributed_c10d._set_pg_timeout(timeout, dist.group.WORLD)
