"""R-MAC: one vector an image from the maxima of its regions (Tolias, Sicre, Jegou, ICLR 2016).

Shapes: B images, C channels of a map of h x w positions, R regions, D components of the vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from dcdist.clustering.pca import PCA, fit_pca, l2_normalize
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError

LARGEST_COUNT = 7  # of regions along the long side at the first level, as published
EPSILON = 1e-5  # share of the largest eigenvalue that is added to each; the published code floors them at it
_IMAGES_A_BLOCK = 100


class Region(NamedTuple):
    """A square of a map, in positions."""

    top: int
    left: int
    side: int


def grid(height: int, width: int, levels: int, overlap: float) -> list[Region]:
    """The regions of a map, section 3.2 of the paper.

    At level l = 1, 2, ... the squares have a side of 2 min(h, w) / (l + 1), rounded down, and there are l of them along
    the short side and l + m - 1 along the long one, spread evenly. m is 1 for a square map; else that of 2..7 for which
    neighbours at the first level overlap by a share as close as possible to `overlap`. A level whose squares would be
    smaller than a position has none.
    """
    short = min(height, width)
    extra = _count(max(height, width), short, overlap) - 1
    regions = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side > 0:
            tops = _starts(height, side, level + (extra if height > width else 0))
            lefts = _starts(width, side, level + (extra if width > height else 0))
            regions += [Region(top, left, side) for top in tops for left in lefts]
    return regions


def _count(long: int, short: int, overlap: float) -> int:
    """M."""
    if long == short:
        return 1
    return min(range(2, LARGEST_COUNT + 1), key=lambda m: abs(1 - (long - short) / (m - 1) / short - overlap))


def _starts(length: int, side: int, count: int) -> list[int]:
    """The first positions of `count` squares that reach from one end to the other."""
    return [number * (length - side) // max(count - 1, 1) for number in range(count)]


def region_maxima(maps: torch.Tensor, regions: Sequence[Region]) -> torch.Tensor:
    """Maps [B, C, h, w] -> the largest value of each channel in each region [B, R, C]."""
    return torch.stack(
        [maps[:, :, top : top + side, left : left + side].amax((2, 3)) for top, left, side in regions], dim=1
    )


def fit_whitening(maxima: Sequence[torch.Tensor], num_components: int) -> PCA:
    """PCA-whitening learnt from the regions of other images.

    Args:
        maxima: [R, C] of each image.
        num_components: D. Directions in which the regions do not vary at all are left out, so it may become fewer.

    Raises:
        UsageError: fewer regions than components.
        RunError: the regions are all equal, or not finite.
    """
    num_regions = sum(map(len, maxima))
    if num_regions < num_components:
        raise UsageError(
            f"{num_components} whitened dimensions need at least as many regions, and the {len(maxima)} images of "
            f"--whitening-data have {num_regions}: give more images, or at most --dimensions {num_regions}"
        )

    def blocks() -> Iterator[torch.Tensor]:
        for start in range(0, len(maxima), _IMAGES_A_BLOCK):
            yield l2_normalize(torch.cat(list(maxima[start : start + _IMAGES_A_BLOCK])))

    pca = fit_pca(blocks, num_components, whiten=True, epsilon=EPSILON, collectives=Collectives())
    kept = pca.numerical_rank
    return replace(pca, projection=pca.projection[:, :kept], eigenvalues=pca.eigenvalues[:kept])


def aggregate(maxima: torch.Tensor, whitening: PCA | None) -> torch.Tensor:
    """The maxima of an image's regions [R, C] -> its vector [D] of length 1.

    Each region is scaled to length 1, whitened and scaled again; then they are added, and the sum is scaled.
    """
    rows = l2_normalize(maxima)
    if whitening is not None:
        rows = l2_normalize(whitening.transform(rows))
    return l2_normalize(rows.sum(0, keepdim=True))[0]
