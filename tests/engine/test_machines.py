"""What a run uses on its machines: whatever a machine does not tell, training goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dcdist.distributed.collectives import Collectives
from dcdist.engine import machines
from dcdist.engine.machines import Machines


def of_one_process(monkeypatch: pytest.MonkeyPatch, process: Any) -> dict[str, Any]:
    """The event of a machine with this process alone."""
    monkeypatch.setattr(machines.psutil, "Process", lambda: process)
    found = Machines(Collectives(), torch.device("cpu"), "n1")
    found.add(found.own(0.5))
    return found.take()


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def process(**answers: Any) -> SimpleNamespace:
    usual = {
        "children": lambda recursive: [],  # noqa: ARG005
        "memory_full_info": lambda: SimpleNamespace(pss=100, rss=300),
        "memory_info": lambda: SimpleNamespace(rss=300),
    }
    return SimpleNamespace(**(usual | answers))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, 100),
        ({"memory_full_info": lambda: SimpleNamespace(rss=300)}, 300),
        ({"memory_full_info": raising(psutil.AccessDenied(1))}, 300),
        ({"memory_full_info": raising(OSError("/proc/1/smaps"))}, 300),
        ({"memory_full_info": raising(OSError()), "memory_info": raising(psutil.NoSuchProcess(1))}, 0),
        ({"children": raising(PermissionError("/proc"))}, 100),
        ({"children": lambda recursive: [process(), process(memory_full_info=raising(psutil.Error()))]}, 500),  # noqa: ARG005
    ],
)
def test_memory_as_far_as_it_is_known(answers: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_one_process(monkeypatch, process(**answers))["memory_bytes"] == {"n1": expected}


class Gpu:
    """Of torch.cuda: the most that was reserved since that was last set back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: self.most)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def use(self, num_bytes: int) -> None:
        self.now, self.most = num_bytes, max(self.most, num_bytes)

    def _reset(self, _device: torch.device) -> None:
        self.most = self.now


def test_gpu_memory_is_the_most_since_the_last_record(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    found = Machines(Collectives(), torch.device("cuda"), "n1")
    taken = []
    for used in ([10, 70, 20], [20, 30], [], [40]):
        for num_bytes in used:
            gpu.use(num_bytes)
            found.add(found.own(0.0))
        taken.append(found.take()["gpu_memory_bytes"]["n1"])
    assert taken == [70, 30, 30, 40], "where nobody has looked since, what was found before"
