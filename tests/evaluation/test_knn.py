"""The neighbours' vote: by hand, and as scikit-learn's classifier votes."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import dcdist.evaluation.knn as knn
from dcdist.errors import UsageError
from dcdist.evaluation.knn import knn_accuracies, knn_accuracy


def on_the_circle(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def random_features(seed: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (num_rows,), generator=generator)
    return torch.randn(num_rows, 6, generator=generator) + torch.eye(5, 6)[labels], labels


@pytest.mark.parametrize("num_neighbors", [1, 4, 15])
def test_plain_vote_is_that_of_scikit_learn(num_neighbors: int) -> None:
    (train, labels), (test, wanted) = random_features(0, 400), random_features(1, 150)
    theirs = KNeighborsClassifier(num_neighbors, metric="cosine", algorithm="brute").fit(train, labels)
    ours = knn_accuracy(train, labels, test, wanted, num_neighbors, temperature=None)
    assert ours.top1 == pytest.approx(theirs.score(test, wanted), abs=1e-6)
    assert (ours.num_classified, ours.leave_one_out) == (150, False)


def test_weighted_vote_is_that_of_scikit_learn() -> None:
    (train, labels), (test, wanted) = random_features(2, 400), random_features(3, 150)
    theirs = KNeighborsClassifier(
        20,
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: torch.exp((1 - torch.tensor(distances)) / 0.1).numpy(),
    ).fit(train, labels)
    assert knn_accuracy(train, labels, test, wanted, 20, temperature=0.1).top1 == pytest.approx(
        theirs.score(test, wanted), abs=1e-6
    )


def test_leave_one_out_is_each_row_against_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = random_features(4, 60)
    others = [[j for j in range(60) if j != i] for i in range(60)]
    right = sum(
        knn_accuracy(features[rest], labels[rest], features[i : i + 1], labels[i : i + 1], 7).top1
        for i, rest in enumerate(others)
    )
    monkeypatch.setattr(knn, "_ELEMENTS_A_BLOCK", 60 * 7)  # several blocks, the last one short
    accuracy = knn_accuracy(features, labels, num_neighbors=7)
    assert accuracy.top1 == pytest.approx(right / 60, abs=1e-12)
    assert accuracy.leave_one_out


def test_several_numbers_of_neighbors_are_each_by_itself() -> None:
    (train, labels), (test, wanted) = random_features(5, 100), random_features(6, 50)
    together = knn_accuracies(train, labels, test, wanted, (15, 1, 100))
    assert together == [knn_accuracy(train, labels, test, wanted, k) for k in (15, 1, 100)]
    assert len({accuracy.top1 for accuracy in together}) > 1


def test_near_neighbors_weigh_more_by_hand() -> None:
    """One neighbour at 0 degrees against two at 60: 1 against 2 exp(-0.5 / T), equal at T = 0.72."""
    train, labels = on_the_circle(0, 60, -60), torch.tensor([1, 0, 0])
    test, wanted = on_the_circle(0), torch.tensor([1])
    assert knn_accuracy(train, labels, test, wanted, 3, temperature=0.7).top1 == 1.0
    assert knn_accuracy(train, labels, test, wanted, 3, temperature=0.75).top1 == 0.0
    assert knn_accuracy(train, labels, test, wanted, 3, temperature=None).top1 == 0.0


def test_lengths_do_not_matter_and_a_tiny_temperature_does_not_overflow() -> None:
    train, labels = on_the_circle(0, 10, 90) * torch.tensor([[1000.0], [0.001], [1.0]]), torch.tensor([0, 0, 1])
    assert knn_accuracy(train, labels, on_the_circle(80, 2), torch.tensor([1, 0]), 3, temperature=1e-4).top1 == 1.0


def test_rows_without_a_label_neither_vote_nor_count() -> None:
    train, labels = on_the_circle(0, 1, 90, 91), torch.tensor([0, -1, 1, -1])
    accuracy = knn_accuracy(train, labels, on_the_circle(1, 45), torch.tensor([0, -1]), num_neighbors=1)
    assert (accuracy.top1, accuracy.num_classified) == (1.0, 1)


def test_too_few_neighbors_and_nothing_to_classify_are_named() -> None:
    train, labels = on_the_circle(0, 90, 180), torch.tensor([0, 1, -1])
    with pytest.raises(UsageError, match="2 nearest neighbours cannot vote: there are 1 labelled images"):
        knn_accuracy(train, labels, num_neighbors=2)
    with pytest.raises(UsageError, match="no labelled image to classify"):
        knn_accuracy(train, labels, train, torch.full((3,), -1), num_neighbors=1)


def test_raw_digits() -> None:
    digits = load_digits()
    features, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    assert knn_accuracy(features, labels).top1 == pytest.approx(0.983, abs=0.002)  # 20 neighbours, temperature 0.07
    assert knn_accuracy(features, labels, temperature=None).top1 == pytest.approx(0.976, abs=0.002)
    assert knn_accuracy(features, labels, num_neighbors=5, temperature=None).top1 == pytest.approx(0.988, abs=0.002)
    assert knn_accuracy(features, labels, num_neighbors=1).top1 == pytest.approx(0.989, abs=0.002)
