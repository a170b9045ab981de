"""How an epoch's samples are drawn from the clusters: evenly, or as the published code draws them."""

from __future__ import annotations

import numpy as np
import pytest

from dcdist.data.pseudo_labels import draw_reference, draw_uniform


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def skewed(num_samples: int = 10_010, num_clusters: int = 10) -> np.ndarray:
    """One cluster with half of the samples, the others even, in random order."""
    assignments = np.arange(num_samples, dtype=np.int32) % (num_clusters - 1) + 1
    assignments[: num_samples // 2] = 0
    return generator(1).permutation(assignments)


CASES = {
    "skewed": (skewed(), 10_010),
    "fewer draws than clusters": (np.arange(100, dtype=np.int32), 30),
    "empty ids": (np.array([3, 9, 9, 3, 9, 9, 70], dtype=np.int32), 100),
    "unassigned": (np.array([-1, 0, 1, -1, 1, 1, -1], dtype=np.int32), 21),
    "one cluster": (np.zeros(5, dtype=np.int32), 12),
    "no draws": (np.zeros(5, dtype=np.int32), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_uniform_draws_every_cluster_and_every_member_of_it_equally_often(case: str) -> None:
    assignments, num_draws = CASES[case]
    draws = draw_uniform(assignments, num_draws, generator())
    assert (draws.shape, draws.dtype) == ((num_draws,), np.int64)
    assert (assignments[draws] >= 0).all(), "an image without a cluster is never drawn"
    clusters = np.unique(assignments[assignments >= 0])
    of_samples = np.bincount(draws, minlength=len(assignments))
    of_clusters = [of_samples[assignments == cluster].sum() for cluster in clusters]
    assert {int(count) for count in of_clusters} <= {num_draws // len(clusters), -(-num_draws // len(clusters))}
    for cluster in clusters:
        members = of_samples[assignments == cluster]
        assert members.max() - members.min() <= 1


def test_a_draw_depends_on_its_generator_alone() -> None:
    assignments, num_draws = CASES["skewed"]
    first = draw_uniform(assignments, num_draws, generator(5))
    np.testing.assert_array_equal(draw_uniform(assignments, num_draws, generator(5)), first)
    assert (draw_uniform(assignments, num_draws, generator(6)) != first).mean() > 0.5


def test_the_order_is_mixed_not_cluster_by_cluster() -> None:
    assignments = np.repeat(np.arange(10, dtype=np.int32), 100)
    drawn = assignments[draw_uniform(assignments, 1000, generator())]
    # Of 999 neighbours a tenth are equal by chance (+-  9.5); sorted it would be 990.
    assert 60 < (drawn[1:] == drawn[:-1]).sum() < 140


def test_over_the_epochs_the_remainder_favours_no_cluster_and_no_member() -> None:
    assignments = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2], dtype=np.int32)
    counts = sum(np.bincount(draw_uniform(assignments, 4, generator(seed)), minlength=9) for seed in range(2000))
    # 8000 draws of 9 samples: 889 each, standard deviation below 30
    assert counts.sum() == 8000
    assert counts.min() > 750
    assert counts.max() < 1030


def published_draws(assignments: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """A replica of the published mechanism, which reads a dataset in cluster order at ids of the original order."""
    random = np.random.RandomState(seed)
    lists = [np.flatnonzero(assignments == cluster) for cluster in range(assignments.max() + 1)]
    in_cluster_order = np.concatenate(lists)  # what the dataset holds at each position
    share = num_draws // sum(len(members) > 0 for members in lists) + 1
    emitted = [
        random.choice(members, share, replace=len(members) <= share) for members in lists if len(members) > 0
    ]  # original ids
    positions = random.permutation(np.concatenate(emitted))[:num_draws]
    return in_cluster_order[positions]


def share_of_the_large_cluster(assignments: np.ndarray, draws: np.ndarray) -> float:
    return float((assignments[draws] == 0).mean())


def test_reference_draws_a_cluster_by_its_mass_as_the_published_code_does() -> None:
    assignments, num_draws = CASES["skewed"]
    published = np.mean(
        [share_of_the_large_cluster(assignments, published_draws(assignments, num_draws, s)) for s in range(5)]
    )
    reference = np.mean(
        [
            share_of_the_large_cluster(assignments, draw_reference(assignments, num_draws, generator(s)))
            for s in range(5)
        ]
    )
    uniform = share_of_the_large_cluster(assignments, draw_uniform(assignments, num_draws, generator()))
    assert uniform == pytest.approx(0.1, abs=1e-4)
    assert published == pytest.approx(0.5, abs=0.02)
    assert reference == pytest.approx(published, abs=0.02)


def test_reference_reads_what_lies_at_the_drawn_ids_in_cluster_order() -> None:
    assignments = np.array([1, 0, 1, 0, 0], dtype=np.int32)  # in cluster order: 1, 3, 4, 0, 2
    drawn = draw_uniform(assignments, 50, generator(2))
    expected = np.array([1, 3, 4, 0, 2])[drawn]
    np.testing.assert_array_equal(draw_reference(assignments, 50, generator(2)), expected)


def test_reference_passes_over_unassigned_samples() -> None:
    assignments = np.array([-1, 1, 0, -1, 1, 0, 0], dtype=np.int32)
    draws = draw_reference(assignments, 1000, generator())
    assert set(draws.tolist()) == {1, 2, 4, 5, 6}
