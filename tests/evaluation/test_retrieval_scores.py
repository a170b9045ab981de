"""Average precision with junk and precision at k: by hand, and against slow definitions written independently."""

from __future__ import annotations

import numpy as np
import pytest

from dcdist.evaluation.retrieval_scores import average_precision, precision_at, ranks_of_positives


def score(ranking: str) -> tuple[float, np.ndarray]:
    """AP and ranks of a ranking of P(ositives), N(egatives) and J(unk), best first."""
    kinds = np.array(list(ranking))
    scores = -np.arange(len(kinds), dtype=np.float32)
    ranks = ranks_of_positives(scores, kinds == "P", kinds == "J")
    return average_precision(ranks, int((kinds == "P").sum())), ranks


@pytest.mark.parametrize(
    ("ranking", "expected", "ranks"),
    [
        ("PNPN", (1 + (1 / 2 + 2 / 3) / 2) / 2, [0, 2]),
        ("JPJNJPJN", (1 + (1 / 2 + 2 / 3) / 2) / 2, [0, 2]),  # as if the junk were not there
        ("NP", (0 + 1 / 2) / 2, [1]),
        ("JP", 1.0, [0]),
        ("NJJP", (0 + 1 / 2) / 2, [1]),
        ("PPP", 1.0, [0, 1, 2]),
        ("PPNN", 1.0, [0, 1]),
        ("NPP", ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2, [1, 2]),
    ],
)
def test_by_hand(ranking: str, expected: float, ranks: list[int]) -> None:
    found, where = score(ranking)
    assert found == pytest.approx(expected, abs=1e-12)
    assert where.tolist() == ranks


def test_positives_that_were_not_ranked_count_as_never_found() -> None:
    assert average_precision(np.array([], np.int64), 3) == 0.0
    assert average_precision(np.array([0]), 4) == pytest.approx(1 / 4)


def test_equal_scores_rank_in_the_order_of_the_images() -> None:
    positive = np.array([False, True, False, True])
    none = np.zeros(4, bool)
    assert ranks_of_positives(np.array([0.5, 0.5, 0.5, 0.9]), positive, none).tolist() == [0, 2]
    assert ranks_of_positives(np.zeros(4), positive, none).tolist() == [1, 3]


def test_precision_looks_no_further_than_the_last_positive() -> None:
    ranks = np.array([0, 3])
    assert [precision_at(ranks, k) for k in (1, 2, 4, 5, 10)] == [1.0, 1 / 2, 2 / 4, 2 / 4, 2 / 4]
    assert precision_at(np.array([2]), 1) == 0.0
    assert precision_at(np.array([], np.int64), 5) == 0.0


def area_below_the_curve(ranking: str) -> float:
    """Walks down the ranking; every step along recall adds the mean of the precisions at both of its ends."""
    total = ranking.count("P")
    seen, hits, area = 0, 0, 0.0
    recall, precision = 0.0, 1.0
    for kind in ranking:
        if kind == "J":
            continue
        seen += 1
        hits += kind == "P"
        area += (hits / total - recall) * (precision + hits / seen) / 2
        recall, precision = hits / total, hits / seen
    return area


def test_agreement_with_the_definition_on_random_rankings() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        ranking = "".join(generator.choice(list("PNJ"), size=generator.integers(1, 60), p=[0.2, 0.6, 0.2])) + "P"
        found, ranks = score(ranking)
        assert found == pytest.approx(area_below_the_curve(ranking), abs=1e-12)
        without_junk = ranking.replace("J", "").rstrip("N")
        for k in (1, 5, 10):
            top = without_junk[:k]
            assert precision_at(ranks, k) == pytest.approx(top.count("P") / len(top), abs=1e-12)
