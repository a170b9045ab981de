"""One, two and three processes, both placements: the same bits; stopping and refusing together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.clustering.ranks import CASES, Result, everything
from tests.distributed.processes import run_processes


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return run_processes(everything, 1)[0]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(everything, request.param)


def assert_same(found: Result, expected: Result) -> None:
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("placement", ["rank0", "distributed"])
@pytest.mark.parametrize("name", CASES)
def test_bit_equal(alone: dict[str, Any], ranks: list[dict[str, Any]], name: str, placement: str) -> None:
    for rank in ranks:
        assert_same(rank["cases"][name, placement], alone["cases"][name, "rank0"])


@pytest.mark.parametrize("placement", ["rank0", "distributed"])
@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_fit_repeats(alone: dict[str, Any], ranks: list[dict[str, Any]], placement: str, stop: int) -> None:
    for rank in [alone, *ranks]:
        calls, result = rank["interrupted"][placement, stop]
        assert calls == [stop, -1]  # every rank was stopped, at the same iteration
        assert_same(result, alone["cases"]["mixture", "rank0"])


def test_every_rank_refuses(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for rank in [alone, *ranks]:
        too_few, non_finite = rank["refusals"][:2]
        assert "clustering.num_clusters=31 needs at least as many images" in too_few
        assert "here are 30" in too_few
        assert "at most 30" in too_few
        assert non_finite.startswith("130: the features of sample 130 are not finite")
        assert rank["refusals"][2:] == [too_few, non_finite]


def test_pca(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for found, expected in zip(rank["pca"], alone["pca"], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        for found, expected in zip(rank["pca"], ranks[0]["pca"], strict=True):
            np.testing.assert_array_equal(found, expected)
