"""What a process takes of its machine before anything runs."""

from __future__ import annotations

import pytest
import torch

from dcdist.config.schema import DataSection
from dcdist.devices import choose_device, devices_of_machine, num_loader_processes, set_threads
from dcdist.distributed.place import Place
from dcdist.errors import UsageError

CPU = torch.device("cpu")


def gpu(index: int) -> torch.device:
    return torch.device("cuda", index)


@pytest.mark.parametrize(
    ("own", "local_world_size", "num_seen", "expected"),
    [
        (gpu(0), 1, 8, [0]),  # one process of the job here: other GPUs are other people's
        (gpu(1), 4, 4, [1, 0, 2, 3]),
        (gpu(0), 4, 1, [0]),  # SLURM shows each task its own GPU alone
        (gpu(0), 2, 8, [0, 1]),
    ],
)
def test_only_gpus_of_the_job_are_shared(
    own: torch.device, local_world_size: int, num_seen: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_seen)
    place = Place(rank=own.index, world_size=8, local_rank=own.index, local_world_size=local_world_size)
    assert devices_of_machine(own, place) == tuple(gpu(index) for index in expected)
    assert devices_of_machine(CPU, place) == (CPU,)


def test_device_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place = Place(0, 1, 0, 1)
    assert choose_device("auto", place) == choose_device("cpu", place) == CPU
    with pytest.raises(UsageError, match=r"launch\.device=cuda, but torch sees no GPU"):
        choose_device("cuda", place)


def test_loader_processes_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"root": "x"}
    assert num_loader_processes(DataSection(**data), CPU) == 1
    assert num_loader_processes(DataSection(**data), gpu(0)) == 8
    assert num_loader_processes(DataSection(**data, num_workers=0), gpu(0)) == 0
    before = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    try:
        set_threads("auto", Place(0, 4, 0, 4))
        assert torch.get_num_threads() == 4
        set_threads(3, Place(0, 4, 0, 4))
        assert torch.get_num_threads() == 3
        set_threads("auto", Place(0, 64, 0, 64))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
