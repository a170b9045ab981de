"""The linear classifier: as scikit-learn's, on features that are open to it and on those that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from dcdist.errors import UsageError
from dcdist.evaluation import linear
from dcdist.evaluation.linear import linear_accuracies, linear_accuracy


def shifted_groups(seed: int, num_rows: int, num_classes: int, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_rows,), generator=generator)
    centers = distance * torch.eye(num_classes, 20)
    return torch.randn(num_rows, 20, generator=generator) + centers[labels], labels


def test_accuracy_is_that_of_scikit_learn_at_the_same_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their C weighs the sum of losses, our penalty the mean: C = 1 / (N penalty)."""
    (train, labels), (test, wanted) = shifted_groups(0, 500, 4, 1.5), shifted_groups(1, 1000, 4, 1.5)
    monkeypatch.setattr(linear, "PENALTIES", (0.01,))
    ours = linear_accuracy(train, labels, test, wanted)
    scaler = StandardScaler().fit(train.numpy())
    theirs = LogisticRegression(C=1 / (500 * 0.01), tol=1e-8, max_iter=1000).fit(
        scaler.transform(train.numpy()), labels
    )
    assert ours.top1 == pytest.approx(theirs.score(scaler.transform(test.numpy()), wanted), abs=0.001)
    assert (ours.penalty, ours.num_train, ours.num_test, ours.top5) == (0.01, 500, 1000, None)


def test_digits() -> None:
    digits = load_digits()
    features, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    accuracy = linear_accuracy(features[:1200], labels[:1200], features[1200:], labels[1200:])
    scaler = StandardScaler().fit(digits.data[:1200])
    theirs = LogisticRegression(max_iter=1000).fit(scaler.transform(digits.data[:1200]), digits.target[:1200])
    assert accuracy.top1 == pytest.approx(
        theirs.score(scaler.transform(digits.data[1200:]), digits.target[1200:]), abs=0.015
    )
    assert accuracy.top5 is not None
    assert accuracy.top5 > 0.98


def test_the_penalty_is_chosen_without_the_test_rows() -> None:
    (train, labels), (test, wanted) = shifted_groups(0, 300, 3, 1.0), shifted_groups(1, 100, 3, 1.0)
    first = linear_accuracy(train, labels, test, wanted)
    second = linear_accuracy(train, labels, test * -1, (wanted + 1) % 3)
    assert first.penalty == second.penalty
    assert first.top1 != second.top1


def test_the_same_arguments_give_the_same_result() -> None:
    (train, labels), (test, wanted) = shifted_groups(0, 300, 3, 1.0), shifted_groups(1, 400, 3, 1.0)
    torch.manual_seed(0)
    first = linear_accuracy(train, labels, test, wanted, seed=5)
    torch.manual_seed(1)
    assert linear_accuracy(train, labels, test, wanted, seed=5) == first


def test_several_splits_are_each_by_itself() -> None:
    (train, labels), (test, wanted) = shifted_groups(0, 100, 3, 1.0), shifted_groups(1, 200, 3, 1.0)
    together = linear_accuracies(train, labels, test, wanted, seeds=range(5))
    assert together == [linear_accuracy(train, labels, test, wanted, seed) for seed in range(5)]
    assert len({accuracy.penalty for accuracy in together}) > 1


def test_correlated_features_are_fitted_to_the_minimum() -> None:
    """Mixed directions whose variances span six orders of magnitude: there the gradient is 0 to rounding."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    rows = torch.randn(400, 30, generator=generator) * torch.logspace(0, -3, 30) @ mixing
    labels = (rows @ torch.randn(30, generator=generator) > 0).long()
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    weights = linear._fit(torch.zeros(2, 31), rows, labels, 1e-3, linear._curvature(rows), 100).double()
    weights.requires_grad_()
    loss = functional.cross_entropy(linear._scores(weights, rows.double()), labels)
    loss = loss + 1e-3 / 2 * weights[:, :-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    # By strong convexity the loss is at most |gradient|^2 / (2 * penalty) above its minimum.
    assert float(gradient[:, :-1].square().sum()) / (2 * 1e-3) < 1e-4 * loss.item()


def test_noise_is_regularised_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 rows of 400 features, of which 20 tell the class a little: the weakest penalty fits the noise."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2200, 400, generator=generator), torch.arange(2200) % 2
    features[:, :20] += 0.5 * labels[:, None]
    data = features[:200], labels[:200], features[200:], labels[200:]
    chosen = linear_accuracy(*data)
    monkeypatch.setattr(linear, "PENALTIES", linear.PENALTIES[-1:])
    weakest = linear_accuracy(*data)
    assert chosen.penalty > weakest.penalty
    assert chosen.top1 > weakest.top1 + 0.02


def test_constant_features_scales_and_missing_labels_do_no_harm() -> None:
    (train, labels), (test, wanted) = shifted_groups(0, 200, 2, 8.0), shifted_groups(1, 50, 2, 8.0)
    scales = torch.logspace(-6, 6, 20)
    train, test = train * scales, test * scales
    train[:, 5] = test[:, 5] = 3.0
    labels[::7] = -1
    wanted[0] = -1
    accuracy = linear_accuracy(train, labels, test, wanted)
    assert accuracy.top1 == 1.0
    assert (accuracy.num_train, accuracy.num_test) == (int((labels >= 0).sum()), 49)


@pytest.mark.parametrize(
    ("train_labels", "test_labels"), [([0, 1, 0, 1], [0]), ([0, 0, 0, 0, 0, -1], [0]), ([0, 1, 0, 1, 0, 1], [-1])]
)
def test_too_few_labels_are_named(train_labels: list[int], test_labels: list[int]) -> None:
    generator = np.random.default_rng(0)
    train, test = (
        torch.tensor(generator.random((len(ids), 3)), dtype=torch.float32) for ids in (train_labels, test_labels)
    )
    with pytest.raises(UsageError, match="a linear classifier needs at least 5 labelled training images of 2 classes"):
        linear_accuracy(train, torch.tensor(train_labels), test, torch.tensor(test_labels))
