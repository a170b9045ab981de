"""Accuracy of the nearest neighbours' vote on frozen features: how well similar images lie together.

Shapes: n rows whose neighbours vote, m rows that are classified, D features, k neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcdist.clustering.pca import l2_normalize
from dcdist.errors import UsageError

DEFAULT_NUM_NEIGHBORS = 20
DEFAULT_TEMPERATURE = 0.07
_ELEMENTS_A_BLOCK = 2**24  # similarities held at a time


@dataclass(frozen=True)
class KnnAccuracy:
    """`top1` is the share of the classified rows whose class won the vote."""

    top1: float
    num_neighbors: int
    temperature: float | None
    num_classified: int
    leave_one_out: bool


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor | None = None,
    test_labels: torch.Tensor | None = None,
    num_neighbors: int = DEFAULT_NUM_NEIGHBORS,
    temperature: float | None = DEFAULT_TEMPERATURE,
) -> KnnAccuracy:
    """`knn_accuracies` of one number of neighbours."""
    data = train_features, train_labels, test_features, test_labels
    return knn_accuracies(*data, neighbors=(num_neighbors,), temperature=temperature)[0]


def knn_accuracies(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor | None,
    test_labels: torch.Tensor | None,
    neighbors: Sequence[int],
    temperature: float | None = DEFAULT_TEMPERATURE,
) -> list[KnnAccuracy]:
    """Each row gets the class for which its k nearest neighbours vote, by cosine similarity; for each k of several.

    A neighbour's vote weighs exp(similarity / temperature) (Wu et al., 2018; 20 neighbours and 0.07 are usual), or 1
    where the temperature is None. Of classes with equal votes the lowest wins. Without test rows every training row is
    classified by the others (leave-one-out). Rows with a negative label are left out.

    Args:
        train_features: [n, D] float32.
        train_labels: [n] int, -1 without a label.
        test_features: [m, D] float32.
        test_labels: [m] int.
        neighbors: every k.
        temperature: of the weights, or None for a plain majority.

    Raises:
        UsageError: fewer labelled rows than neighbours, or none to classify.
    """
    leave_one_out = test_features is None
    train, labels = _labelled(train_features, train_labels)
    if test_features is None:
        test, wanted = train, labels
    else:
        assert test_labels is not None
        test, wanted = _labelled(test_features, test_labels)
    available = len(train) - leave_one_out
    for k in neighbors:
        if not 1 <= k <= available:
            raise UsageError(
                f"{k} nearest neighbours cannot vote: there are {available} labelled images to choose from; "
                f"ask for 1 to {available}"
            )
    if not len(test):
        raise UsageError("there is no labelled image to classify by its nearest neighbours")
    num_classes = int(max(labels.max(), wanted.max())) + 1
    num_right = dict.fromkeys(neighbors, 0)
    rows_a_block = max(1, _ELEMENTS_A_BLOCK // len(train))
    for start in range(0, len(test), rows_a_block):
        similarities = test[start : start + rows_a_block] @ train.T
        if leave_one_out:
            own = torch.arange(len(similarities))
            similarities[own, start + own] = -torch.inf
        nearest, indices = similarities.topk(max(neighbors), dim=1)
        weights = torch.ones_like(nearest)
        if temperature is not None:
            weights = ((nearest - nearest[:, :1]) / temperature).exp()  # the largest is 1: no overflow
        for k in neighbors:
            votes = weights.new_zeros(len(similarities), num_classes)
            votes.scatter_add_(1, labels[indices[:, :k]], weights[:, :k])
            num_right[k] += int((votes.argmax(1) == wanted[start : start + rows_a_block]).sum())
    return [KnnAccuracy(num_right[k] / len(test), k, temperature, len(test), leave_one_out) for k in neighbors]


def _labelled(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    known = labels >= 0
    return l2_normalize(features[known].float()), labels[known].long()
