"""Where and in which precision a network computes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Numerics:
    """Device, precision and memory layout of every forward pass of a run."""

    device: torch.device
    bfloat16: bool
    channels_last: bool

    def place(self, module: nn.Module) -> nn.Module:
        """Moves the module to the device, its convolutions to the memory layout; in place."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device).to(memory_format=layout)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively (elsewhere it is emulated, and slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # The kernel's list rather than torch.cpu's, which is private or missing in the older versions supported.
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
