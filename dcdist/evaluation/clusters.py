"""Clusters of frozen features scored against labels, and the read-outs that every row of a comparison shares.

Shapes: N rows, D features, K clusters, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from dcdist.clustering.merge import merge_clusters
from dcdist.clustering.pca import fit_pca, l2_normalize
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import derive_seed
from dcdist.errors import UsageError
from dcdist.metrics.contingency import contingency
from dcdist.metrics.partition_scores import (
    accuracy_of_names,
    ami,
    ari,
    hungarian_accuracy,
    majority_purity,
    name_clusters,
    nmi,
)

DEFAULT_NUM_RESTARTS = 20
_WARD_CLUSTERS_PER_CLUSTER = 20
_WARD_CLUSTERS = (200, 2000)  # at least, and at most: merging takes the square of it in memory
_WARD_ROWS_PER_CLUSTER = 5
_ROWS_A_BLOCK = 4096
_WARD_ITERATIONS = 10  # clusters that are to be merged need not be settled


@dataclass(frozen=True)
class FeatureClusters:
    """k-means of a feature matrix; `objective` is the sum of squared distances / N."""

    assignments: torch.Tensor  # [N] int32
    centroids: torch.Tensor  # [K, D] float32
    objective: float


def cluster_features(
    features: torch.Tensor,
    num_clusters: int,
    seed: int,
    num_restarts: int = DEFAULT_NUM_RESTARTS,
    max_iterations: int = 300,
) -> FeatureClusters:
    """k-means (scikit-learn's, from k-means++) with restarts, of which the lowest objective is kept.

    Few restarts now and then merge two classes, which costs up to 10 points of accuracy.

    Args:
        features: [N, D] float32, used as they are.
        num_clusters: K.
        seed: of the initial centroids.
        num_restarts: how often.
        max_iterations: of each restart; most converge before.

    Raises:
        UsageError: fewer rows than clusters.
    """
    if not 1 <= num_clusters <= len(features):
        raise UsageError(f"{len(features)} images cannot make {num_clusters} clusters: ask for 1 to {len(features)}")
    random_state = derive_seed(seed, "cluster_features") % 2**32  # what scikit-learn takes
    kmeans = KMeans(num_clusters, n_init=num_restarts, max_iter=max_iterations, random_state=random_state)
    kmeans.fit(features.numpy())
    return FeatureClusters(
        assignments=torch.from_numpy(kmeans.labels_.astype(np.int32)),
        centroids=torch.from_numpy(kmeans.cluster_centers_.astype(np.float32)),
        objective=float(kmeans.inertia_) / len(features),
    )


def ward_clusters(features: torch.Tensor, num_clusters: int, seed: int) -> torch.Tensor:
    """Many clusters of k-means, merged to K by Ward's rule: [N] int32. Uses no labels; linear in N.

    The many are 20 for each wanted cluster, between 200 and 2000, and leave 5 rows each.
    """
    at_least, at_most = _WARD_CLUSTERS
    num_many = min(max(at_least, _WARD_CLUSTERS_PER_CLUSTER * num_clusters), at_most)
    num_many = max(num_clusters, min(num_many, len(features) // _WARD_ROWS_PER_CLUSTER))
    many = cluster_features(features, num_many, seed, num_restarts=1, max_iterations=_WARD_ITERATIONS)
    sizes = torch.bincount(many.assignments, minlength=num_many)
    return merge_clusters(many.centroids, sizes, num_clusters)[many.assignments.long()]


def whitened(
    features: torch.Tensor, num_dimensions: int, epsilon: float = 1e-4
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The read-out that whitens the principal components of these rows, then scales each row to length 1.

    Args:
        features: [N, D] float32, the rows that the components are fitted to.
        num_dimensions: components kept; at most min(N, D) are.
        epsilon: share of the largest eigenvalue added to each before whitening.

    Raises:
        RunError: the rows are all equal, or not finite.
    """
    dimensions = min(num_dimensions, *features.shape)
    pca = fit_pca(lambda: iter(torch.split(features, _ROWS_A_BLOCK)), dimensions, True, epsilon, Collectives())
    return lambda rows: l2_normalize(pca.transform(rows))


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of clusters with classes; rows without a label are left out. `table` is [K, C], counts."""

    nmi: float
    ari: float
    ami: float
    accuracy: float  # best one-to-one matching of clusters to classes
    purity: float  # every cluster named by its majority
    table: NDArray[np.int64]


def cluster_scores(assignments: torch.Tensor, labels: torch.Tensor) -> ClusterScores:
    """Scores of [N] cluster ids against [N] classes.

    Raises:
        UsageError: no row has a label.
    """
    clusters, classes = assignments.numpy(), labels.numpy()
    if not ((clusters >= 0) & (classes >= 0)).any():
        raise UsageError("clusters cannot be scored: no image has a label and a cluster")
    return ClusterScores(
        nmi=nmi(clusters, classes),
        ari=ari(clusters, classes),
        ami=ami(clusters, classes),
        accuracy=hungarian_accuracy(clusters, classes),
        purity=majority_purity(clusters, classes),
        table=contingency(clusters, classes).dense(),
    )


@dataclass(frozen=True)
class NamedAccuracy:
    """Accuracy of test images by the names of their clusters."""

    by_train_naming: float  # clusters are named by the best matching on the training images
    by_best_naming: float  # by the best matching on the test images themselves; of 2 clusters the better of 2 namings


def accuracy_by_naming(
    train_assignments: torch.Tensor,
    train_labels: torch.Tensor,
    test_assignments: torch.Tensor,
    test_labels: torch.Tensor,
) -> NamedAccuracy:
    """Accuracy of test images that were assigned to the nearest centroid of training images.

    `by_best_naming` looks at the test labels, so with few test images it is optimistic: never below 1/2 for two
    clusters of two classes.

    Args:
        train_assignments: [N] clusters.
        train_labels: [N] classes.
        test_assignments: [M] clusters.
        test_labels: [M] classes.
    """
    names = name_clusters(train_assignments.numpy(), train_labels.numpy())
    test_clusters, test_classes = test_assignments.numpy(), test_labels.numpy()
    return NamedAccuracy(
        by_train_naming=accuracy_of_names(test_clusters, test_classes, names),
        by_best_naming=hungarian_accuracy(test_clusters, test_classes),
    )
