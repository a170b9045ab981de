"""What a config asks for, held against itself, the data and the number of processes, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dcdist.build.clustering import build_clusterer, build_readout
from dcdist.build.methods import Samples, build_method, clustering_stage, method_class
from dcdist.build.views import crop_views, evaluation_view, training_view
from dcdist.clustering.hierarchical import HierarchicalKMeans
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.linear_scan import LinearScan
from dcdist.clustering.pic import PowerIterationClustering
from dcdist.clustering.types import Clusterer
from dcdist.config.schema import StageConfig
from dcdist.errors import UsageError
from dcdist.models.backbone import Backbone

_CPU = torch.device("cpu")
_MOST_OUTPUTS = 2**17  # of all heads of clustering by scan: 0.5 GiB for each of some six tensors of a step's rows


def check_stages(stages: Sequence[StageConfig], num_samples: int, backbone: Backbone, world_size: int) -> None:
    """Refuses what cannot work, what a read-out or a later stage would refuse after hours of training included.

    Raises:
        UsageError: K, PCA dimensions, neighbours, views or the number of processes do not fit, or the order of stages
            or the parts of a joint one; names the key and the remedy.
    """
    for number, stage in enumerate(stages):
        _check_processes(stage, world_size)
        _check_features(stage, num_samples, backbone.num_features)
        _check_readout(stage, num_samples, backbone.num_features)
        if stage.method == "joint":
            _check_joint(stage)
        for part in stage.parts():
            _check_views(part, backbone)
            if part.method == "jigsaw":  # whose tiles have to fit the network
                build_method(part, backbone, 0, Samples(num_samples, range(num_samples), _CPU))
        if stage.method == "selflabel" or (stage.method == "scan" and stage.scan.initial == "readout"):
            _check_classifier(stage, stages[number - 1] if number else None, backbone)
            if stage.method == "scan" and stage.scan.num_heads > 1:
                raise UsageError(
                    f"stage {stage.name}: scan.initial=readout starts all heads alike, and they stay alike: set "
                    f"scan.num_heads to 1 (it is {stage.scan.num_heads})"
                )


def _check_classifier(stage: StageConfig, before: StageConfig | None, backbone: Backbone) -> None:
    """The stage goes on from a linear classifier, which the stage before it has to leave."""
    wants = "method=selflabel" if stage.method == "selflabel" else "scan.initial=readout"
    remedy = (
        f"put a stage with method=scan before it, or one with readout.method=scan, readout.pca_dimensions and "
        f"readout.num_clusters={stage.scan.num_clusters}"
    )
    if before is None:
        raise UsageError(f"stage {stage.name}: {wants} goes on from the classifier of a stage before it: {remedy}")
    if method_class(before).classifies:
        count: int | None = before.scan.num_clusters
    else:
        recipe = build_readout(before, (_CPU,))
        is_linear = isinstance(recipe.clusterer, LinearScan) and recipe.pca_dimensions and recipe.merge_to is None
        count = recipe.clusterer.num_clusters if isinstance(recipe.clusterer, LinearScan) and is_linear else None
        if backbone.features_before_relu:
            remedy = "this network's classifiers follow a ReLU, which those of reduced rows do not: put a stage with "
            remedy += "method=scan before it"
            count = None
    if count is None:
        raise UsageError(
            f"stage {stage.name}: {wants} goes on from the classifier of the stage before it, and stage {before.name} "
            f"(method={before.method}) leaves none: {remedy}"
        )
    if count != stage.scan.num_clusters:
        raise UsageError(
            f"stage {stage.name}: scan.num_clusters={stage.scan.num_clusters}, and the classifier of stage "
            f"{before.name}, which it goes on from, has {count} classes: set both to the same"
        )


def _check_processes(stage: StageConfig, world_size: int) -> None:
    train = stage.train
    assert isinstance(train.microbatch_size, int)
    if train.microbatch_size < 2:
        raise UsageError(
            f"train.microbatch_size={train.microbatch_size}: batch normalisation needs at least 2 images at a time"
        )
    num_microbatches = train.batch_size // train.microbatch_size
    if world_size > num_microbatches:
        raise UsageError(
            f"{world_size} processes cannot share a step of {num_microbatches} microbatches "
            f"(train.batch_size={train.batch_size} / train.microbatch_size={train.microbatch_size}): "
            f"use at most {num_microbatches} processes, or a smaller train.microbatch_size"
        )


def _check_features(stage: StageConfig, num_samples: int, num_features: int) -> None:
    clusters = clustering_stage(stage)
    if clusters is None:
        return
    if method_class(clusters).takes == "neighbors":
        if clusters.scan.num_neighbors >= num_samples:
            raise UsageError(
                f"scan.num_neighbors={clusters.scan.num_neighbors} needs more images than that, data.root has "
                f"{num_samples}: set scan.num_neighbors to at most {num_samples - 1}"
            )
    else:
        for count in clusters.clustering.counts:
            clusterer = build_clusterer(clusters.clustering, count, (_CPU,))
            _check_clusterer(clusterer, "clustering.num_clusters", count, num_samples)
    if not method_class(clusters).clusters_embeddings:
        _check_dimensions("features.pca_dimensions", clusters.features.pca_dimensions, num_samples, num_features)


def _check_readout(stage: StageConfig, num_samples: int, num_features: int) -> None:
    if method_class(stage).classifies:
        return
    recipe = build_readout(stage, (_CPU,))
    name = "features" if stage.readout.pca_dimensions == "auto" else "readout"
    _check_dimensions(f"{name}.pca_dimensions", recipe.pca_dimensions, num_samples, num_features)
    clusterer = recipe.clusterer
    if recipe.num_restarts > 1 and not isinstance(clusterer, KMeans | HierarchicalKMeans):
        raise UsageError(
            f"stage {stage.name}: readout.num_restarts={recipe.num_restarts} compares objectives of k-means, which are "
            "not what this read-out minimises: set it to 1 (scan has clustering.num_heads starts)"
        )
    count = stage.readout.num_clusters
    _check_clusterer(clusterer, "readout.num_clusters", count or 1, num_samples)
    if count is None and clusterer.least_rows > num_samples:
        raise UsageError(
            f"stage {stage.name}: the final clustering would have clustering.num_clusters="
            f"{max(stage.clustering.counts)} of {num_samples} images: set readout.num_clusters"
        )


def _check_clusterer(clusterer: Clusterer, name: str, count: int, num_samples: int) -> None:
    finds_count = isinstance(clusterer, PowerIterationClustering)  # `count` only bounds what it finds
    if isinstance(clusterer, LinearScan | PowerIterationClustering) and clusterer.num_neighbors >= num_samples:
        raise UsageError(
            f"clustering.num_neighbors={clusterer.num_neighbors} needs more images than that, data.root has "
            f"{num_samples}: set clustering.num_neighbors to at most {num_samples - 1}"
        )
    if isinstance(clusterer, LinearScan) and clusterer.num_heads * clusterer.num_clusters > _MOST_OUTPUTS:
        raise UsageError(
            f"{clusterer.num_heads} heads of {clusterer.num_clusters} clusters do not fit the memory of clustering by "
            f"scan: set {name}, or clustering.num_heads to at most {max(1, _MOST_OUTPUTS // clusterer.num_clusters)}"
        )
    if count > num_samples and not finds_count:
        raise UsageError(
            f"{name}={count} needs at least as many images, data.root has {num_samples}: "
            f"set {name} to at most {num_samples}; small data does well with 3 to 10 times its classes"
        )


def _check_dimensions(name: str, dimensions: int | None, num_samples: int, num_features: int) -> None:
    if dimensions is not None and dimensions > min(num_samples, num_features):
        raise UsageError(
            f"{name}={dimensions} needs at least as many images ({num_samples}) and features "
            f"({num_features}): set {name} to at most {min(num_samples, num_features)}, or to null"
        )


def _check_views(stage: StageConfig, backbone: Backbone) -> None:
    views = [evaluation_view(stage.views)]
    views += crop_views(stage.views) if method_class(stage).num_views[0] else [training_view(stage.views)]
    for size in sorted({view.size for view in views} if method_class(stage).sees_images else {views[0].size}):
        try:
            backbone.feature_shape(size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"stage {stage.name}: the network cannot see images of {size} x {size} "
                f"({str(error).splitlines()[0]}): set views.image_size and views.crops to what it was built for, the "
                "views.image_size of the whole config, or choose a network without fully connected layers"
            ) from error
    num_views = len(crop_views(stage.views))
    least, most = method_class(stage).num_views
    if not least <= num_views <= most:
        wanted = f"{least}" if least == most else f"at least {least}"
        raise UsageError(
            f"method={stage.method} compares {wanted} views of an image, views.crops has {num_views}: list so many, or "
            "leave it empty"
        )


def _check_joint(stage: StageConfig) -> None:
    parts = stage.parts()
    if not parts:
        raise UsageError(f"stage {stage.name}: method=joint needs joint.parts, a list of named methods")
    for part in parts:
        if hasattr(torch.nn.ModuleDict(), part.name):
            raise UsageError(f"joint.parts: a part cannot be called {part.name}: choose another name")
    clustering = [part.name for part in parts if clustering_stage(part)]
    if len(clustering) > 1:
        raise UsageError(f"joint.parts: at most one part takes clusters, here are {', '.join(clustering)}")
    for part in parts:
        if method_class(part).classifies:
            raise UsageError(f"joint.parts: method={part.method} of part {part.name} can only be a stage of its own")
