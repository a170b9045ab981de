"""Accuracy of a linear classifier on frozen features: how much of the classes lies open in them.

Shapes: n training rows, m test rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from dcdist.distributed.seeding import torch_generator
from dcdist.errors import UsageError

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # from strong to weak: the weak ones take most iterations
_PATIENCE = 2  # penalties in a row that do not classify the held-back rows better, after which no weaker one is tried
_HELD_BACK_SHARE = 0.2
_MIN_TRAIN = 5  # so that a row is held back
_TOLERANCE = 1e-4  # of the gradient, in variables in which the loss is evenly curved
_ROUNDING = 1e-7
_TOP5_CLASSES = 5  # top-5 accuracy is given where there are more


@dataclass(frozen=True)
class LinearAccuracy:
    """Shares of test rows whose class got the largest score, and one of the five largest (None up to 5 classes)."""

    top1: float
    top5: float | None
    penalty: float  # chosen on a part of the training rows
    num_train: int
    num_test: int


def linear_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    seed: int = 0,
    max_iterations: int = 100,
) -> LinearAccuracy:
    """`linear_accuracies` by one split."""
    data = train_features, train_labels, test_features, test_labels
    return linear_accuracies(*data, seeds=(seed,), max_iterations=max_iterations)[0]


def linear_accuracies(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    seeds: Sequence[int],
    max_iterations: int = 100,
) -> list[LinearAccuracy]:
    """Multinomial logistic regression by L-BFGS on features standardised by the training rows, for each seed.

    Minimises the mean cross-entropy + penalty / 2 * |W|^2 (the bias is free). The penalty that classifies a held-back
    fifth of the training rows best (of equals the strongest) is used to fit all of them; test rows take no part in any
    choice. Rows with a negative label are left out.

    Args:
        train_features: [n, D] float32.
        train_labels: [n] int, -1 without a label.
        test_features: [m, D] float32.
        test_labels: [m] int.
        seeds: of the splits that hold a fifth back; nothing else is random.
        max_iterations: of L-BFGS, for each penalty.

    Raises:
        UsageError: no labelled test row, fewer than 5 labelled training rows, or of one class alone.
    """
    train, labels = train_features[train_labels >= 0].float(), train_labels[train_labels >= 0].long()
    test, wanted = test_features[test_labels >= 0].float(), test_labels[test_labels >= 0].long()
    num_present = len(torch.unique(labels))
    if len(train) < _MIN_TRAIN or not len(test) or num_present < 2:
        raise UsageError(
            f"a linear classifier needs at least {_MIN_TRAIN} labelled training images of 2 classes and a labelled "
            f"test image, here are {len(train)} of {num_present} classes and {len(test)}"
        )
    num_classes = int(max(labels.max(), wanted.max())) + 1
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation, 0.0)
    train, test = (train - mean) * scale, (test - mean) * scale
    curvature = _curvature(train)
    fitted: dict[float, LinearAccuracy] = {}
    chosen = [_choose_penalty(train, labels, num_classes, curvature, seed, max_iterations) for seed in seeds]
    for penalty in set(chosen):
        start = torch.zeros(num_classes, train.shape[1] + 1)
        scores = _scores(_fit(start, train, labels, penalty, curvature, max_iterations), test)
        top5 = None
        if num_classes > _TOP5_CLASSES:
            top5 = int((scores.topk(_TOP5_CLASSES, dim=1).indices == wanted[:, None]).any(1).sum()) / len(wanted)
        fitted[penalty] = LinearAccuracy(_accuracy(scores, wanted), top5, penalty, len(train), len(test))
    return [fitted[penalty] for penalty in chosen]


def _choose_penalty(
    train: torch.Tensor, labels: torch.Tensor, num_classes: int, curvature: torch.Tensor, seed: int, max_iterations: int
) -> float:
    order = torch.randperm(len(train), generator=torch_generator(seed, "linear_accuracy"))
    num_held_back = int(len(train) * _HELD_BACK_SHARE)
    held_back, kept = order[:num_held_back], order[num_held_back:]
    rows, classes = train[kept], labels[kept]
    weights = torch.zeros(num_classes, train.shape[1] + 1)
    best, best_accuracy, num_worse = PENALTIES[0], -1.0, 0
    for penalty in PENALTIES:
        weights = _fit(weights, rows, classes, penalty, curvature, max_iterations)
        accuracy = _accuracy(_scores(weights, train[held_back]), labels[held_back])
        if accuracy > best_accuracy:
            best, best_accuracy, num_worse = penalty, accuracy, 0
        else:
            num_worse += 1
        if num_worse == _PATIENCE:
            break
    return best


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return int((scores.argmax(1) == labels).sum()) / len(labels)


def _scores(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Scores [n, C]; the last column of the weights [C, D + 1] is the bias."""
    return torch.addmm(weights[:, -1], rows, weights[:, :-1].T)


def _curvature(rows: torch.Tensor) -> torch.Tensor:
    """The mean of x x^T / 4 over the rows [D, D]: what the second derivative of a row's loss is at most, by a class.

    A little of its trace is added, so that its rounding errors leave it positive.
    """
    curvature = rows.T @ rows / (4 * len(rows))
    curvature.diagonal().add_(_ROUNDING * curvature.trace())
    return curvature


def _fit(
    start: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    penalty: float,
    curvature: torch.Tensor,
    max_iterations: int,
) -> torch.Tensor:
    """Minimises from weights [C, D + 1], in variables in which the loss is about as curved in every direction.

    W = V L^-1 with L L^T = curvature + penalty: the minimum is the same, and L-BFGS is there in 10 to 20 iterations,
    where the correlated features of an image need hundreds.
    """
    factor = torch.linalg.cholesky(curvature + penalty * torch.eye(len(curvature)))
    variables = torch.cat([start[:, :-1] @ factor, start[:, -1:]], 1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [variables], max_iter=max_iterations, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def weights() -> torch.Tensor:
        solved = torch.linalg.solve_triangular(factor, variables[:, :-1], upper=False, left=False)
        return torch.cat([solved, variables[:, -1:]], 1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = weights()
        loss = functional.cross_entropy(_scores(found, rows), labels) + penalty / 2 * found[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights().detach()
