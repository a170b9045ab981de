"""One, two and three processes, both placements: the same bits; stopping and refusing together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.clustering.clusterer_ranks import EXACT, PLUS_PLUS, ROUNDED, everything_of_clusterers
from tests.clustering.ranks import CASES, Result
from tests.distributed.processes import run_processes


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return run_processes(everything_of_clusterers, 1)[0]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(everything_of_clusterers, request.param)


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


@pytest.mark.parametrize("placement", ["rank0", "distributed"])
@pytest.mark.parametrize("name", PLUS_PLUS)
def test_kmeans_plus_plus(alone: dict[str, Any], ranks: list[dict[str, Any]], name: str, placement: str) -> None:
    for rank in ranks:
        assert_same(rank["plus plus"][name, placement], alone["plus plus"][name, "rank0"])


@pytest.mark.parametrize("name", [*EXACT, *ROUNDED])
def test_clusterers(alone: dict[str, Any], ranks: list[dict[str, Any]], name: str) -> None:
    _, _, expected = alone["clusterers"][name]
    for rank in ranks:
        num_calls_until_stopped, num_calls, result = rank["clusterers"][name]
        assert num_calls_until_stopped == 3
        assert num_calls == ranks[0]["clusterers"][name][1] > 3  # as often on every rank
        assert_same(result, ranks[0]["clusterers"][name][2])
        if name in EXACT:
            assert_same(result, expected)
        else:
            np.testing.assert_array_equal(result[0], expected[0])
            for value, wanted in zip(result[1:3], expected[1:3], strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
            assert result[3:] == (pytest.approx(expected[3], rel=1e-6), *expected[4:])


@pytest.mark.parametrize("name", ROUNDED)
def test_mixtures(alone: dict[str, Any], ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        parts = zip(rank["parameters"][name], ranks[0]["parameters"][name], alone["parameters"][name], strict=True)
        for found, first, expected in parts:
            np.testing.assert_array_equal(found, first)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_neighbors(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    expected = alone["neighbors"]
    for rank in ranks:
        found = rank["neighbors"]
        assert found["calls"] == ranks[0]["neighbors"]["calls"]
        assert found["refusal"] == expected["refusal"]
        for engine in ("torch", "faiss"):
            np.testing.assert_array_equal(found[engine], expected["torch"])
    table = expected["torch"]
    assert (table[::3] != np.arange(0, len(table), 3)[:, None]).all()
    assert (table[::3] >= 0).all()
    assert (table[1::3] == -1).all()
