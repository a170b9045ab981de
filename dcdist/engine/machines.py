"""What a run uses on each of its machines: memory, and time that training waited for images there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from dcdist.distributed.collectives import Collectives

MEASURE_EVERY_SECONDS = 60.0  # looking through a machine's processes takes milliseconds

_WAITED, _MEMORY, _GPU_MEMORY = range(3)


def machine_name(environment: Mapping[str, str] = os.environ) -> str:
    """SLURM's name of this machine, else its host name; of a pod of a Job that is the same after a restart."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


class Machines:
    """Sums of the ranks' figures by machine. Collective when made.

    A reduction of these figures rides on the one that every step record needs: `own` is this rank's part,
    `add` takes the sum over all ranks.

    Args:
        collectives: the ranks.
        device: of this rank.
        name: of this rank's machine.
    """

    def __init__(self, collectives: Collectives, device: torch.device, name: str) -> None:
        names = collectives.all_gather_objects(name)
        self._names = list(dict.fromkeys(names))
        self._num_processes = [names.count(own) for own in self._names]
        self._own = self._names.index(name)
        self._device = device
        self._measured_at: float | None = None
        self._measured = (0.0, 0.0)
        self._sums = torch.zeros(len(self._names), 3, dtype=torch.float64)
        self._taken_at = time.monotonic()

    def own(self, waited: float) -> torch.Tensor:
        """[machines x 3] float64, flat: zeros but for this rank's machine.

        Args:
            waited: seconds that this rank waited for images since it was last asked.
        """
        now = time.monotonic()
        if self._measured_at is None or now - self._measured_at >= MEASURE_EVERY_SECONDS:
            self._measured_at, self._measured = now, (_memory_bytes(), _gpu_bytes(self._device))
        own = torch.zeros(len(self._names), 3, dtype=torch.float64)
        own[self._own] = torch.tensor([waited, *self._measured], dtype=torch.float64)
        return own.flatten()

    def add(self, sums: torch.Tensor) -> float:
        """Takes the sum of all ranks' `own`; returns the mean time that a rank waited."""
        new = sums.view_as(self._sums)
        self._sums[:, _WAITED] += new[:, _WAITED]
        self._sums[:, _MEMORY:] = new[:, _MEMORY:]
        return float(new[:, _WAITED].sum()) / sum(self._num_processes)

    def is_due(self) -> bool:
        """Whether a minute has passed since figures were taken."""
        return time.monotonic() - self._taken_at >= MEASURE_EVERY_SECONDS

    def take(self) -> dict[str, Any]:
        """Values of the event "machines", each by machine; data_wait_seconds since they were last taken."""
        self._taken_at = time.monotonic()
        by_name = dict(zip(self._names, zip(self._sums.tolist(), self._num_processes, strict=True), strict=True))
        values: dict[str, Any] = {
            "processes": {name: count for name, (_, count) in by_name.items()},
            "data_wait_seconds": {name: sums[_WAITED] / count for name, (sums, count) in by_name.items()},
        }
        if self._measured_at is not None:
            values["memory_bytes"] = {name: sums[_MEMORY] for name, (sums, _) in by_name.items()}
        if self._measured_at is not None and self._device.type == "cuda":
            values["gpu_memory_bytes"] = {name: sums[_GPU_MEMORY] for name, (sums, _) in by_name.items()}
        self._sums[:, _WAITED] = 0
        return values


def _memory_bytes() -> float:
    """Of this process and of those that it started; a page that several of them share counts once in all."""
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended, or is somebody else's
            continue
    return float(total)


def _gpu_bytes(device: torch.device) -> float:
    return float(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0.0
