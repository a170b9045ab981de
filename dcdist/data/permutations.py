"""The permutations that a puzzle can be shuffled by: few of all, as different from each other as possible.

Shapes: P permutations of T tiles, F = T! of all there are.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np

from dcdist.distributed.seeding import numpy_generator

HammingDistance = Literal["mean", "minimum"]
_NEVER_AGAIN = 2**30


def permutation_set(
    num_permutations: int, seed: int, num_tiles: int = 9, distance: HammingDistance = "mean"
) -> np.ndarray:
    """P permutations far apart in Hamming distance (the number of places at which two of them differ).

    Greedy, as Noroozi and Favaro (ECCV 2016, algorithm 1): the first one at random, then always the one that is
    farthest from those chosen before; of equally far ones the first in lexicographic order.

    Args:
        num_permutations: P.
        seed: decides the first one, and with it all others.
        num_tiles: T.
        distance: what "farthest" compares: the mean distance to those chosen, as published, or the distance to the
            nearest of them, and where that is the same the mean.

    Returns:
        [P, T] int64, all different, in the order in which they were chosen.

    Raises:
        ValueError: there are not so many permutations, or an unknown distance.
    """
    total = math.factorial(num_tiles)
    if not 1 <= num_permutations <= total:
        raise ValueError(
            f"num_permutations is {num_permutations}, and {num_tiles} tiles have {total} permutations: "
            f"set jigsaw.num_permutations to 1..{total}; 100 to 2000 are usual"
        )
    if distance not in ("mean", "minimum"):
        raise ValueError(f"unknown Hamming distance {distance!r}: mean and minimum are known")
    everything = itertools.chain.from_iterable(itertools.permutations(range(num_tiles)))
    candidates = np.fromiter(everything, np.int8, count=total * num_tiles).reshape(total, num_tiles)
    places = np.ascontiguousarray(candidates.T)  # [T, F]: one place of all candidates lies in one piece
    # Places at which a candidate equals those chosen: a small number is a large distance. Both are kept up to date, so
    # that no P x F matrix of distances is ever there. With 9 tiles every sum fits in 32 bits, even of all permutations.
    equal_to_all = np.zeros(total, np.int32)
    equal_to_nearest = np.zeros(total, np.int32)
    chosen = [int(numpy_generator(seed, "permutations").integers(total))]
    while len(chosen) < num_permutations:
        equal = np.zeros(total, np.int8)
        for place, tile in zip(places, candidates[chosen[-1]], strict=True):
            equal += place == tile
        equal_to_all += equal
        equal_to_all[chosen[-1]] = _NEVER_AGAIN
        closeness = equal_to_all
        if distance == "minimum":
            np.maximum(equal_to_nearest, equal, out=equal_to_nearest)
            # The weight outweighs any difference in the mean.
            closeness = equal_to_nearest * (num_tiles * num_permutations) + equal_to_all
        chosen.append(int(closeness.argmin()))  # the first of the smallest
    return candidates[chosen].astype(np.int64)
