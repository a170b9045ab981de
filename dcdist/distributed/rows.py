"""State that is spread over the ranks by rows, each known by a key: how it is given to a checkpoint and read again.

Shapes: n rows, of this rank or selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open


@dataclass(frozen=True)
class KeyedRows:
    """State that is spread over the ranks by rows, each known by a key: banks and queues.

    Every rank gives the rows that it holds, maybe none; loading deals them out anew (StoredRows).

    Args:
        keys: [n] int64, sample_ids or positions; no two ranks give the same.
        values: {name: [n, ...]}, the same names, types and row shapes on every rank.
    """

    keys: torch.Tensor
    values: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        assert self.keys.dtype == torch.int64, f"keys are int64, not {self.keys.dtype}"
        assert self.keys.ndim == 1, f"keys have the shape [n], not {list(self.keys.shape)}"
        for name, value in self.values.items():
            assert len(value) == len(self.keys), f"{name} has {len(value)} rows for {len(self.keys)} keys"


class StoredRows:
    """The rows of all ranks that saved, read from their files when they are asked for."""

    def __init__(self, files: Sequence[Path], name: str) -> None:
        self._files = files
        self._name = name

    def all_keys(self) -> torch.Tensor:
        """[rows of all ranks] int64, in the order of the ranks that saved."""
        return torch.cat([read_tensors(file, [f"{self._name}/keys"])[0] for file in self._files])

    def select(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows with these keys ([n] int64, any order, repeats allowed), in their order: {name: [n, ...]}.

        Raises:
            KeyError: a key was not saved.
        """
        stored, order = self.all_keys().sort()
        assert not (stored[1:] == stored[:-1]).any(), "two ranks saved rows of the same key"
        found = torch.searchsorted(stored, keys).clamp(max=max(len(stored) - 1, 0))
        missing = keys[stored[found] != keys] if len(stored) else keys
        if len(missing):
            raise KeyError(f"{len(missing)} of {len(keys)} keys have no stored row, the first is {int(missing[0])}")
        source = order[found]  # position in the concatenation of all files
        selected: dict[str, torch.Tensor] = {}
        start = 0
        for file in self._files:
            with safe_open(file, framework="pt") as tensors:
                stop = start + len(tensors.get_tensor(f"{self._name}/keys"))
                rows = ((source >= start) & (source < stop)).nonzero().squeeze(1)
                prefix = f"{self._name}/values/"
                for name in (key.removeprefix(prefix) for key in tensors.keys() if key.startswith(prefix)):  # noqa: SIM118
                    value = tensors.get_tensor(prefix + name)
                    target = selected.setdefault(name, value.new_empty((len(keys), *value.shape[1:])))
                    target[rows] = value[source[rows] - start]
            start = stop
        return selected


def read_tensors(file: Path, names: Sequence[str]) -> list[torch.Tensor]:
    """Named tensors of a safetensors file, in memory of their own, on the CPU."""
    with safe_open(file, framework="pt") as tensors:
        # A copy, as what get_tensor gives may be a map of a file that will be removed.
        return [tensors.get_tensor(name).clone() for name in names]
