"""R-MAC: the grid by hand, the order of its steps on small cases, whitening against scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import decomposition

from dcdist.clustering.pca import PCA, l2_normalize
from dcdist.errors import UsageError
from dcdist.evaluation.rmac import EPSILON, Region, aggregate, fit_whitening, grid, region_maxima


def squares(side: int, tops: list[int], lefts: list[int]) -> list[Region]:
    return [Region(top, left, side) for top, left in itertools.product(tops, lefts)]


def test_grid_of_a_wide_map() -> None:
    """1024 x 768 pixels at a stride of 16: m = 2, for two squares of 48 overlap by 2/3, three by 5/6."""
    assert grid(48, 64, 3, 0.4) == [
        *squares(48, [0], [0, 16]),
        *squares(32, [0, 16], [0, 16, 32]),
        *squares(24, [0, 12, 24], [0, 13, 26, 40]),
    ]


def test_grid_of_a_tall_map_is_the_wide_one_turned() -> None:
    turned = {Region(left, top, side) for top, left, side in grid(48, 64, 3, 0.4)}
    assert set(grid(64, 48, 3, 0.4)) == turned
    assert len(grid(64, 48, 3, 0.4)) == 1 * 2 + 2 * 3 + 3 * 4


def test_grid_of_a_square_map() -> None:
    """Sides 8, 16 // 3 and 16 // 4."""
    assert grid(8, 8, 3, 0.4) == [*squares(8, [0], [0]), *squares(5, [0, 3], [0, 3]), *squares(4, [0, 2, 4], [0, 2, 4])]
    assert grid(8, 8, 1, 0.4) == [Region(0, 0, 8)]


def test_grid_of_a_panorama() -> None:
    """Of 10 x 30 three squares do not overlap, four by a third, five by a half: a third is nearest to 0.4."""
    assert grid(10, 30, 1, 0.4) == squares(10, [0], [0, 6, 13, 20])
    assert grid(10, 30, 1, 0.5) == squares(10, [0], [0, 5, 10, 15, 20])
    assert len(grid(10, 1000, 1, 0.4)) == 7, "no more than published"


def test_grid_of_a_map_that_is_hardly_one() -> None:
    assert grid(1, 1, 3, 0.4) == [Region(0, 0, 1)]
    assert grid(1, 2, 3, 0.4) == squares(1, [0], [0, 0, 1]), "three of one position, for two would not overlap"


def test_grids_reach_from_edge_to_edge_evenly() -> None:
    for height, width in itertools.product(range(8, 40, 3), range(8, 40, 5)):
        regions = grid(height, width, 3, 0.4)
        for level in (1, 2, 3):
            side = 2 * min(height, width) // (level + 1)
            of_level = [region for region in regions if region.side == side]
            tops, lefts = (sorted({region[axis] for region in of_level}) for axis in (0, 1))
            for starts, length in ((tops, height), (lefts, width)):
                assert starts[-1] == (length - side if len(starts) > 1 else 0)
                steps = np.diff(starts)
                assert len(steps) == 0 or steps.max() - steps.min() <= 1
            assert min(len(tops), len(lefts)) == level
            assert len(of_level) == len(tops) * len(lefts)


def test_maxima_of_regions() -> None:
    maps = torch.tensor([[[1.0, 2, 3], [4, 5, 6]], [[9, 1, 1], [0, 7, 2]]])[None]  # two channels of 2 x 3
    regions = [Region(0, 0, 2), Region(0, 1, 2), Region(1, 0, 1)]
    assert region_maxima(maps, regions).tolist() == [[[5, 9], [6, 7], [4, 0]]]


def test_the_order_of_the_steps_without_whitening() -> None:
    """(3, 4) becomes (0.6, 0.8) and (0, 2) becomes (0, 1) before they are added: (0.6, 1.8) / sqrt(3.6)."""
    found = aggregate(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), None)
    torch.testing.assert_close(found, torch.tensor([0.6, 1.8]) / 3.6**0.5)


def test_the_order_of_the_steps_with_whitening() -> None:
    """(0.6, 0.8) - (0, 0.2) = (0.6, 0.6), times (2, 1) = (1.2, 0.6), of length 1: (2, 1) / sqrt(5); (0, 1) stays."""
    whitening = PCA(torch.tensor([0.0, 0.2]), torch.diag(torch.tensor([2.0, 1.0])), torch.ones(2), 2)
    total = torch.tensor([2 / 5**0.5, 1 / 5**0.5 + 1])
    found = aggregate(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), whitening)
    torch.testing.assert_close(found, total / total.norm())


def test_whitening_is_the_principal_components_of_all_regions() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    maxima = [torch.rand(4 + number % 3, 6, generator=generator) @ mixing for number in range(250)]
    rows = l2_normalize(torch.cat(maxima)).double()
    reference = decomposition.PCA(4, whiten=True, svd_solver="full").fit(rows.numpy())
    fitted = fit_whitening(maxima, 4)
    added = EPSILON * reference.explained_variance_[0]
    shrunk = np.sqrt(reference.explained_variance_ / (reference.explained_variance_ + added))
    expected = torch.from_numpy(np.abs(reference.transform(rows.numpy()) * shrunk))
    torch.testing.assert_close(fitted.transform(rows).abs().double(), expected, rtol=0, atol=5e-6)


def test_directions_without_variance_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    maxima = [torch.cat([torch.rand(5, 3, generator=generator), torch.zeros(5, 2)], dim=1) for _ in range(50)]
    assert fit_whitening(maxima, 5).projection.shape == (5, 3), "two of the channels are dead"


def test_fewer_regions_than_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="8 whitened dimensions need at least as many regions, and the 2 images of"):
        fit_whitening([torch.rand(3, 10)] * 2, 8)
