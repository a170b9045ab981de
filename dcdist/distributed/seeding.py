"""Seeds derived from coordinates (seed, stage, epoch, position, ...), never from the rank or from what ran before."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def derive_seed(*coordinates: int | str) -> int:
    """A 63-bit seed that depends on every coordinate and on their order.

    A cryptographic hash rather than arithmetic on the seed: sums and products of small numbers collide
    (seed * epoch makes epoch 0 ignore the seed).
    """
    for coordinate in coordinates:
        if not isinstance(coordinate, int | str | np.integer):
            raise TypeError(f"a seed's coordinate is an int or a str, not {type(coordinate).__name__}: {coordinate!r}")
    text = json.dumps([c if isinstance(c, str) else int(c) for c in coordinates])  # 1 and "1" differ in it
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(*coordinates: int | str) -> torch.Generator:
    """A CPU generator of torch for these coordinates."""
    return torch.Generator().manual_seed(derive_seed(*coordinates))


def numpy_generator(*coordinates: int | str) -> np.random.Generator:
    """A counter-based generator of NumPy for these coordinates."""
    return np.random.Generator(np.random.Philox(derive_seed(*coordinates)))
