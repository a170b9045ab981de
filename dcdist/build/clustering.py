"""From the config's clustering to clusterers, steps and read-outs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dcdist.build.methods import clustering_stage, method_class
from dcdist.clustering.gmm import GaussianMixture
from dcdist.clustering.hierarchical import HierarchicalKMeans
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.linear_scan import LinearScan
from dcdist.clustering.pic import PowerIterationClustering
from dcdist.clustering.steps import ClusteringStep, HeadsStep, NeighborsStep
from dcdist.clustering.types import Clusterer
from dcdist.config.schema import ClusteringSection, StageConfig
from dcdist.engine.readout import ReadoutRecipe

Devices = tuple[torch.device, ...]


def _kmeans(clustering: ClusteringSection, num_clusters: int, devices: Devices) -> KMeans:
    return KMeans(
        num_clusters=num_clusters,
        num_iterations=clustering.num_iterations or 20,
        placement=clustering.placement,
        gather_limit_gib=clustering.gather_limit_gib,
        spherical=clustering.spherical,
        engine=clustering.engine,
        initial=clustering.initial,
        devices=devices,
    )


def _gmm(clustering: ClusteringSection, num_clusters: int, devices: Devices) -> GaussianMixture:
    return GaussianMixture(
        num_clusters=num_clusters,
        covariance=clustering.covariance,
        num_iterations=clustering.num_iterations or 100,
        regularization=clustering.regularization,
        initial=clustering.initial,
        device=devices[0],
    )


def _pic(clustering: ClusteringSection, num_clusters: int, devices: Devices) -> PowerIterationClustering:
    return PowerIterationClustering(
        num_neighbors=clustering.num_neighbors or 5,
        sigma=clustering.sigma,
        num_iterations=clustering.num_iterations or 200,
        max_clusters=num_clusters,
        device=devices[0],
    )


def _hierarchical(clustering: ClusteringSection, num_clusters: int, devices: Devices) -> HierarchicalKMeans:
    return HierarchicalKMeans(_kmeans(clustering, num_clusters, devices), clustering.num_coarse)


def _scan(clustering: ClusteringSection, num_clusters: int, devices: Devices) -> LinearScan:
    return LinearScan(
        num_clusters=num_clusters,
        num_neighbors=clustering.num_neighbors or 20,
        entropy_weight=clustering.entropy_weight,
        num_heads=clustering.num_heads,
        num_steps=clustering.num_iterations or 400,
        device=devices[0],
    )


CLUSTERERS: dict[str, Callable[[ClusteringSection, int, Devices], Clusterer]] = {
    "kmeans": _kmeans,
    "gmm": _gmm,
    "pic": _pic,
    "hierarchical": _hierarchical,
    "scan": _scan,
}


def build_clusterer(
    clustering: ClusteringSection, num_clusters: int, devices: Devices, method: str | None = None
) -> Clusterer:
    """The clusterer that the config names (or `method`), for this K."""
    return CLUSTERERS[method or clustering.method](clustering, num_clusters, devices)


def build_clustering_step(stage: StageConfig, devices: Devices) -> tuple[ClusteringStep | None, int | None]:
    """What happens to the rows, and each how many epochs (None: once, when the stage begins)."""
    clusters = clustering_stage(stage)
    if clusters is None:
        return None, None
    if method_class(clusters).takes == "neighbors":
        return NeighborsStep(clusters.scan.num_neighbors, devices[0]), None
    heads = (build_clusterer(clusters.clustering, k, devices) for k in clusters.clustering.counts)
    return HeadsStep(tuple(heads)), clusters.clustering.every_num_epochs


def build_readout(stage: StageConfig, devices: Devices) -> ReadoutRecipe:
    """How the stage's final clustering is made."""
    readout, features = stage.readout, stage.features
    count = readout.num_clusters or max(stage.clustering.counts)
    return ReadoutRecipe(
        clusterer=build_clusterer(stage.clustering, count, devices, readout.method),
        merge_to=readout.merge_to,
        pca_dimensions=features.pca_dimensions if readout.pca_dimensions == "auto" else readout.pca_dimensions,
        whiten=features.whiten if readout.whiten == "auto" else readout.whiten,
        epsilon=features.epsilon,
        num_restarts=readout.num_restarts,
    )
