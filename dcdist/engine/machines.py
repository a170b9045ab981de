"""What a run uses on each of its machines: memory, and time that training waited for images there."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from dcdist.distributed.collectives import Collectives

MEASURE_EVERY_SECONDS = 60.0  # looking through a machine's processes takes milliseconds

_NOT_TOLD = (psutil.Error, OSError, NotImplementedError)

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
        self._memory = 0.0
        self._is_taken = True  # what is known of the GPUs, so that the next sums are of a new time
        self._sums = torch.zeros(len(self._names), 3, dtype=torch.float64)
        self._taken_at = time.monotonic()

    def own(self, waited: float) -> torch.Tensor:
        """[machines x 3] float64, flat: zeros but for this rank's machine.

        Args:
            waited: seconds that this rank waited for images since it was last asked.
        """
        now = time.monotonic()
        if self._measured_at is None or now - self._measured_at >= MEASURE_EVERY_SECONDS:
            self._measured_at, self._memory = now, _memory_bytes()
        own = torch.zeros(len(self._names), 3, dtype=torch.float64)
        own[self._own] = torch.tensor([waited, self._memory, _gpu_bytes(self._device)], dtype=torch.float64)
        return own.flatten()

    def add(self, sums: torch.Tensor) -> float:
        """Takes the sum of all ranks' `own`; returns the mean time that a rank waited."""
        new = sums.view_as(self._sums)
        self._sums[:, _WAITED] += new[:, _WAITED]
        self._sums[:, _MEMORY] = new[:, _MEMORY]
        of_gpus = new[:, _GPU_MEMORY]
        self._sums[:, _GPU_MEMORY] = of_gpus if self._is_taken else torch.maximum(self._sums[:, _GPU_MEMORY], of_gpus)
        self._is_taken = False
        return float(new[:, _WAITED].sum()) / sum(self._num_processes)

    def is_due(self) -> bool:
        """Whether a minute has passed since figures were taken."""
        return time.monotonic() - self._taken_at >= MEASURE_EVERY_SECONDS

    def take(self) -> dict[str, Any]:
        """Values of the event "machines", each by machine, in seconds and bytes.

        data_wait_seconds are those since they were last taken, gpu_memory_bytes the highest since then.
        """
        self._taken_at, self._is_taken = time.monotonic(), True
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
    """Of this process and of those that it started; a page that several of them share counts once in all.

    What the machine does not tell counts 0: no training ends for it.
    """
    processes = []
    with contextlib.suppress(*_NOT_TOLD):
        processes.append(psutil.Process())
        processes += processes[0].children(recursive=True)
    return float(sum(map(_bytes_of, processes)))


def _bytes_of(process: psutil.Process) -> int:
    with contextlib.suppress(*_NOT_TOLD, AttributeError):  # kernels without smaps do not know the shared pages
        return int(process.memory_full_info().pss)
    with contextlib.suppress(*_NOT_TOLD):  # it has ended, or is somebody else's
        return int(process.memory_info().rss)
    return 0


def _gpu_bytes(device: torch.device) -> float:
    """The most that torch held since this was last asked: the peak begins anew."""
    if device.type != "cuda":
        return 0.0
    most = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(most)
