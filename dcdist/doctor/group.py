"""Meeting the other processes, and whether sums over them come out right."""

from __future__ import annotations

import errno
import os
import re
import socket
import statistics
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place
from dcdist.distributed.process_group import join
from dcdist.doctor.check import Budget, Check
from dcdist.errors import UsageError

JOIN_SECONDS = 20.0
_COLLECTIVE_SECONDS = 60.0  # longer than anything here may take: this process stops waiting before
_REPEATS = 20
_CONNECT_SECONDS = 2.0
_NCCL_BYTES = 1 << 26


def meet(place: Place, budget: Budget, seconds: float) -> tuple[Collectives | None, Check]:
    """Joins the others over gloo, whatever they compute on; None where that fails, and why."""
    if place.world_size == 1:
        return Collectives(), Check("process group", "ok", "one process, nobody to meet")
    try:
        # torch may try twice as long as it is told.
        collectives = budget.call(
            seconds + 3, lambda: join(place, torch.device("cpu"), seconds, max(seconds, _COLLECTIVE_SECONDS))
        )
    except Exception as error:
        return None, explain(error, place, seconds)
    check = budget.guard(
        "process group", seconds, lambda: check_all_reduce(collectives), "is another process of the job gone?"
    )
    return (collectives if check.state != "FAIL" else None), check


def explain(error: Exception, place: Place, seconds: float) -> Check:
    """Why the others were not met, and what to do."""
    finding, remedy = _why(error, place, seconds)
    return Check("process group", "FAIL", " ".join(finding.split()), remedy)


def _why(error: Exception, place: Place, seconds: float) -> tuple[str, str]:
    own, host, port = socket.gethostname(), os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    where, text = f"{host}:{port} (MASTER_ADDR:MASTER_PORT)", str(error)
    if isinstance(error, UsageError):
        text = text.partition(": ")[0]  # the rest is the remedy
        if "SLURM_JOB_ID" in os.environ:
            first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            return text, f"before srun: export MASTER_ADDR={first} MASTER_PORT=23456"
        return text, "start by torchrun or dcdist's launcher, or export MASTER_ADDR (rank 0's machine) and MASTER_PORT"
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        return f"MASTER_PORT={port!r} is no port", "set it to one from 1024 to 65535"
    if not _resolves(host):
        remedy = "MASTER_ADDR must be an address of rank 0's machine, or a name that every machine resolves"
        return f"MASTER_ADDR={host} does not resolve on {own}", remedy
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        remedy = "choose another MASTER_PORT; is another run, or a second process with RANK=0, on this machine?"
        return f"another program listens at {where}", remedy
    came = re.search(r"(\d+)/(\d+) clients joined", text)
    if came:
        remedy = (
            f"are all {came[2]} started (WORLD_SIZE), and do their machines reach {host}:{port} (MASTER_ADDR right, "
            "no firewall)?"
        )
        return f"waited {seconds:g} s at {where}: {came[1]} of {came[2]} processes came", remedy
    if place.rank == 0 and not _is_own(host):
        finding = f"MASTER_ADDR={host} is no address of {own}, where rank 0 runs, and rank 0 is not reached there"
        return finding, "MASTER_ADDR must be the machine of rank 0, which the others connect to"
    if place.rank > 0 and not _answers(host, int(port)):
        remedy = (
            "is rank 0 started, MASTER_ADDR the address of its machine (127.0.0.1 only leads to one's own), "
            "and the port open in its firewall?"
        )
        return f"nobody listens at {where}, tried for {seconds:g} s from {own}", remedy
    if "Ping failed" in text:
        remedy = "choose another MASTER_PORT, and look for a proxy between the machines"
        return f"what listens at {where} is not rank 0", remedy
    what = text.rpartition("stopped answering: ")[2]
    finding = f"not all {place.world_size} processes came to {where} and connected within {seconds:g} s: {what}"
    remedy = (
        "are all of them started, with one WORLD_SIZE? If so, GLOO_SOCKET_IFNAME=the interface that leads to the "
        f"other machines (here: {_interfaces()})"
    )
    return finding, remedy


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex() if name != "lo") or "lo alone"


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _is_own(host: str) -> bool:
    """Whether an address is one of this machine's: only these can be bound to."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                continue
        return True
    return False


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS):
            return True
    except OSError:
        return False


def check_all_reduce(collectives: Collectives) -> Check:
    """Whether a sum over all processes is right, how long it takes, and where they are."""
    expected = collectives.world_size * (collectives.world_size + 1) / 2
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        total = float(collectives.all_reduce_sum(torch.tensor([collectives.rank + 1.0])))
        times.append(time.perf_counter() - began)
        if total != expected:
            remedy = "have all processes the same WORLD_SIZE, and each a RANK of its own?"
            return Check("process group", "FAIL", f"a sum over all ranks is {total:g}, not {expected:g}", remedy)
    hosts = Counter(collectives.all_gather_objects(socket.gethostname()))
    names = ", ".join(f"{count} on {host}" for host, count in hosts.most_common(8))
    more = f" and {len(hosts) - 8} more machines" if len(hosts) > 8 else ""
    latency = f"{statistics.median(times) * 1e3:.2g} ms"
    return Check(
        "process group", "ok", f"{collectives.world_size} processes ({names}{more}), all-reduce by gloo {latency}"
    )


def check_nccl(collectives: Collectives, device: torch.device) -> Check:
    """The same between GPUs. Collective; it blocks for ever where NCCL does, so it is to be called with a bound."""
    # NCCL's own watchdog would end the process; whoever calls this stops waiting long before.
    group: Any = dist.new_group(backend="nccl", timeout=timedelta(minutes=10))
    expected = collectives.world_size * (collectives.world_size + 1) / 2
    began = time.perf_counter()
    small = torch.full((1,), collectives.rank + 1.0, device=device)
    dist.all_reduce(small, group=group)
    first = float(small)
    meeting = time.perf_counter() - began
    times, total = [], first
    for _ in range(_REPEATS):
        small.fill_(collectives.rank + 1.0)
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        dist.all_reduce(small, group=group)
        total = float(small)
        times.append(time.perf_counter() - began)
    large = torch.ones(_NCCL_BYTES // 4, device=device)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    dist.all_reduce(large, group=group)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    if first != expected or total != expected or float(large[-1]) != collectives.world_size:
        finding = f"a sum over all ranks is {first:g} and {total:g}, not {expected:g}"
        return Check("NCCL", "FAIL", finding, "NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1 tell which way is broken")
    rate = _NCCL_BYTES / seconds / 1e9
    latency = statistics.median(times) * 1e3
    finding = f"all-reduce {latency:.2g} ms, of 64 MiB at {rate:.1f} GB/s; connecting took {meeting:.1f} s"
    return Check("NCCL", "ok", finding)


def nccl_remedy() -> str:
    """For a check of NCCL that raises or hangs."""
    return (
        f"NCCL_SOCKET_IFNAME=the interface that leads to the other machines (here: {_interfaces()}); "
        "NCCL_IB_DISABLE=1 without InfiniBand; NCCL_DEBUG=INFO says more"
    )


def leave_group(budget: Budget) -> bool:
    """Takes the group down; whether that worked in time."""
    if not dist.is_initialized():
        return True
    try:
        budget.call(5.0, dist.destroy_process_group)
    except Exception:
        return False
    return True
