"""Seeds: a function of every coordinate, the same for ever, without collisions of small numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dcdist.distributed.seeding import derive_seed, numpy_generator, torch_generator


def test_a_seed_stays_what_it_is() -> None:
    """A changed value would make a resumed run draw another order than it began with."""
    assert derive_seed(31, "order", 0) == 1080235729030262290
    drawn = torch.rand(1, generator=torch_generator(31, "order", 0)).item()
    assert drawn == pytest.approx(0.5610314607620239, abs=1e-7)
    assert numpy_generator(31, "order", 0).random() == pytest.approx(0.37194752453311264, abs=1e-15)


def test_small_coordinates_do_not_collide() -> None:
    seeds = [derive_seed(*coordinates) for coordinates in itertools.product(range(12), repeat=3)]
    seeds += [derive_seed(a, b) for a in range(12) for b in range(12)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), (2, 1)),
        ((0, 5), (0, 6)),
        ((1,), ("1",)),
        ((5,), ("i5",)),
        (("ab",), ("a", "b")),
        (("a\x1fb",), ("a", "b")),
        (('a", "b',), ("a", "b")),
        ((), (0,)),
    ],
)
def test_different_coordinates_give_different_seeds(one: tuple, other: tuple) -> None:
    assert derive_seed(*one) != derive_seed(*other)


def test_numbers_of_numpy_count_as_plain_ones() -> None:
    assert derive_seed(np.int64(7), "x") == derive_seed(7, "x")


@pytest.mark.parametrize("coordinate", [0.5, None, (1, 2)])
def test_other_coordinates_are_refused(coordinate: object) -> None:
    with pytest.raises(TypeError, match="a seed's coordinate is an int or a str"):
        derive_seed(1, coordinate)  # type: ignore[arg-type]


def test_seeds_fit_every_generator() -> None:
    for seed in map(derive_seed, range(1000)):
        assert 0 <= seed < 2**63


def test_generators_of_different_coordinates_are_independent() -> None:
    a, b = (numpy_generator(1, "x", epoch).random(10_000) for epoch in (0, 1))
    assert abs(float(np.corrcoef(a, b)[0, 1])) < 0.05
    c, d = (torch.rand(10_000, generator=torch_generator(1, "x", epoch)) for epoch in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack((c, d)))[0, 1])) < 0.05
    assert torch_generator(1).device == torch.device("cpu")
