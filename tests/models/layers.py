"""Layers of a counterpart are replaced as docs/export.md describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def replaced(network: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """The network, changed in place."""
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, getattr(nn, layer["class"])(**layer["arguments"]))
    return network
