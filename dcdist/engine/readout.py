"""The final clustering of a stage, from the weights that the stage ends with: nearest centroid, nothing refilled.

Shapes: N samples, K clusters of k-means, M after merging, D raw features, d reduced ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dcdist.clustering.merge import merge_clusters
from dcdist.clustering.pca import PCA
from dcdist.clustering.search import nearest_centroids
from dcdist.clustering.types import UNASSIGNED, Clusterer, Clustering, FeatureShard, HeadClustering
from dcdist.data.source import ImageSource
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import torch_generator
from dcdist.features import ImagePass, RawFeatures, extract_features, reduce_features, transform_features
from dcdist.methods.base import Method
from dcdist.models.heads import Classifier


class Readout:
    """What turns an image's raw features into its final cluster: a classifier, or transform, centroids and merging."""

    def __init__(self) -> None:
        self.pca: PCA | None = None
        self.centroids = torch.empty(0, 0)  # [K, d]
        self.merged_to = torch.empty(0, dtype=torch.int32)  # [K], the final cluster of each centroid
        self.classifier: Classifier | None = None
        self.classifies_rows = False  # reduced rows, else raw features

    @property
    def num_clusters(self) -> int:
        return int(self.merged_to.max()) + 1 if len(self.merged_to) else 0

    def rows(self, raw: RawFeatures) -> FeatureShard:
        """This rank's raw rows as `assign` wants them: reduced, or a classifier's logits of raw features."""
        if self.classifier is None or self.classifies_rows:
            return transform_features(raw, self.pca)
        blocks = [self.classifier.logits(block).cpu() for block in raw.blocks()]
        return FeatureShard(raw.ids(), torch.cat([torch.empty(0, len(self.classifier.weight)), *blocks]))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows -> clusters [n] int32 and distances [n].

        The distance is the squared one to the nearest centroid; under a classifier it is 1 - the cluster's probability.
        """
        if self.classifier is not None:
            logits = self.classifier.logits(rows) if self.classifies_rows else rows
            probabilities, clusters = logits.softmax(1).max(1)
            return self.merged_to[clusters], 1.0 - probabilities
        nearest, distances = nearest_centroids(rows, self.centroids)
        return self.merged_to[nearest.long()], distances

    def on_features(self) -> Classifier | None:
        """The final clusters as a linear classifier of raw features; None where they are none.

        Of a classifier of reduced rows up to the length of a row: that of every row counts as the root mean square.
        """
        if self.classifier is None or not self.classifies_rows:
            return self.classifier
        if self.pca is None or self.num_clusters < len(self.merged_to):
            return None
        weight = self.classifier.weight @ self.pca.projection.T / self.pca.root_mean_square_length
        return Classifier(weight, self.classifier.bias - weight @ self.pca.mean, relu_first=False)

    def state_dict(self) -> dict[str, Any]:
        return {
            "pca": self.pca.state_dict() if self.pca else None,
            "centroids": self.centroids,
            "merged_to": self.merged_to,
            "classifier": dict(vars(self.classifier)) if self.classifier else None,
            "classifies_rows": self.classifies_rows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pca = PCA.from_state_dict(state["pca"]) if state["pca"] else None
        self.centroids, self.merged_to = state["centroids"], state["merged_to"]
        self.classifier = Classifier(**state["classifier"]) if state["classifier"] else None
        self.classifies_rows = state["classifies_rows"]


@dataclass(frozen=True)
class ReadoutRecipe:
    """How the final clustering is made, where the method has no classifier for that.

    `merge_to` merges the clusters by Ward's rule, which uses no labels; `num_restarts` runs of the clusterer, of
    which the one of the lowest objective is kept.
    """

    clusterer: Clusterer
    merge_to: int | None
    pca_dimensions: int | None
    whiten: bool
    epsilon: float
    num_restarts: int

    @property
    def least_rows(self) -> int:
        """Images that it needs."""
        return max(self.clusterer.least_rows, self.pca_dimensions or 0)

    def read_out(
        self,
        readout: Readout,
        method: Method,
        source: ImageSource,
        images: ImagePass,
        collectives: Collectives,
        seed: int,
        at_boundary: Callable[[], None],
    ) -> Clustering:
        """Fits `readout` in place on the images of `source`; returns their final clustering. Collective."""
        raw = extract_features(method.backbone, source, images, collectives, at_boundary)
        readout.classifier = method.classifier()
        if readout.classifier is not None:
            return _classified(readout, raw, len(source), collectives)
        shard, pca = reduce_features(
            raw, collectives, pca_dimensions=self.pca_dimensions, whiten=self.whiten, epsilon=self.epsilon
        )
        runs = [
            self.clusterer.fit(shard, len(source), collectives, torch_generator(seed, "readout", number), at_boundary)
            for number in range(self.num_restarts)
        ]
        best = min(runs, key=lambda run: run.objective)
        counts = torch.bincount(best.assignments[best.assignments >= 0].long(), minlength=best.num_clusters)
        merged_to = torch.arange(best.num_clusters, dtype=torch.int32)
        num_empty_repaired = best.num_empty_repaired
        if self.merge_to is not None and self.merge_to < best.num_clusters:
            merged_to = merge_clusters(best.centroids, counts, self.merge_to)
            num_empty_repaired = 0  # of the merged ones none
        readout.pca, readout.centroids, readout.merged_to = pca, best.centroids, merged_to
        readout.classifies_rows = best.linear is not None
        if best.linear is not None:
            readout.classifier = Classifier(best.linear[:, :-1].contiguous(), best.linear[:, -1].contiguous(), False)
        assignments, distances = assign_everywhere(readout, shard, len(source), collectives)
        head = replace(
            best,
            assignments=assignments,
            distances=distances,
            centroids=_merged_centroids(best, counts, merged_to),
            num_empty_repaired=num_empty_repaired,
        )
        return Clustering((head,))


def _classified(readout: Readout, raw: RawFeatures, num_samples: int, collectives: Collectives) -> Clustering:
    """The classifier's clusters; the rows that they are compared in are their own probabilities."""
    classifier = readout.classifier
    assert classifier is not None
    readout.classifies_rows = False
    readout.merged_to = torch.arange(len(classifier.weight), dtype=torch.int32)
    assignments, distances = assign_everywhere(readout, readout.rows(raw), num_samples, collectives)
    total = float(distances.nansum()) / max(1, int((assignments >= 0).sum()))
    head = HeadClustering(assignments, distances, classifier.weight, total, 0, 0, "classifier")
    return Clustering((head,))


def assign_everywhere(
    readout: Readout, shard: FeatureShard, num_samples: int, collectives: Collectives
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows' clusters and distances, gathered from all ranks; UNASSIGNED and nan where there is no row."""
    clusters, row_distances = readout.assign(shard.features)
    assignments = torch.full((num_samples,), UNASSIGNED, dtype=torch.int32)
    distances = torch.full((num_samples,), float("nan"))
    sample_ids = collectives.all_gather_rows(shard.sample_ids)
    assignments[sample_ids] = collectives.all_gather_rows(clusters)
    distances[sample_ids] = collectives.all_gather_rows(row_distances)
    return assignments, distances


def _merged_centroids(head: HeadClustering, counts: torch.Tensor, merged_to: torch.Tensor) -> torch.Tensor:
    """The mean of each final cluster's members [M, d], from the means of the clusters merged into it."""
    num_merged = int(merged_to.max()) + 1
    weights = counts.double().unsqueeze(1)
    sums = torch.zeros(num_merged, head.centroids.shape[1], dtype=torch.float64)
    sums.index_add_(0, merged_to.long(), head.centroids.double() * weights)
    totals = torch.zeros(num_merged, 1, dtype=torch.float64).index_add_(0, merged_to.long(), weights)
    return (sums / totals.clamp_min(1)).float()
