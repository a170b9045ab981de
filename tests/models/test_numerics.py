"""Where and in which precision a network computes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dcdist.models.numerics import Numerics, has_bfloat16

CPU = torch.device("cpu")


def test_place_moves_the_module_itself_into_the_memory_layout() -> None:
    with torch.random.fork_rng():
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    weights = [parameter.clone() for parameter in module.parameters()]
    assert Numerics(CPU, bfloat16=False, channels_last=True).place(module) is module
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not module[0].weight.is_contiguous()
    for before, after in zip(weights, module.parameters(), strict=True):
        assert torch.equal(before, after)
    Numerics(CPU, bfloat16=False, channels_last=False).place(module)
    assert torch.equal(module[0].weight, weights[0])


def test_autocast_is_bfloat16_where_asked_for() -> None:
    a = torch.ones(2, 2)
    with Numerics(CPU, bfloat16=True, channels_last=False).autocast():
        assert (a @ a).dtype == torch.bfloat16
    with Numerics(CPU, bfloat16=False, channels_last=False).autocast():
        assert (a @ a).dtype == torch.float32


def test_bfloat16_on_a_cpu_is_what_the_kernel_lists() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    assert has_bfloat16(CPU) is bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
