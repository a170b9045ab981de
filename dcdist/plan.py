"""What a run will need, without starting it: `dcdist train CONFIG --plan`.

Shapes: N images, D raw features, d reduced ones, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from dcdist.build.checks import check_stages
from dcdist.build.methods import Samples, build_method, clustering_stage, epoch_length, method_class
from dcdist.build.run import build_backbone, open_training_images
from dcdist.build.views import GIB
from dcdist.clustering.kmeans import choose_placement
from dcdist.config.identity import resolve_autos
from dcdist.config.load import to_yaml
from dcdist.config.schema import ExperimentConfig, StageConfig, TrainSection
from dcdist.methods.base import Method
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import has_bfloat16

# Of clusterers that have no choice; the others are made of k-means.
_FIXED_PLACEMENTS: dict[str, tuple[Literal["rank0", "distributed"], str]] = {
    "gmm": ("distributed", "rows stay where they are, sums are shared"),
    "pic": ("distributed", "rows stay where they are, rank 0 holds the graph"),
    "scan": ("rank0", "heads are trained on all rows"),
}


def describe_plan(config: ExperimentConfig, num_processes: int) -> str:
    """The resolved config and, stage by stage, the memory, steps, placement and checkpoint size it implies.

    Raises:
        UsageError: what could not run: K, PCA dimensions or processes that do not fit the data.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and config.launch.device != "cpu" else "cpu")
    config = resolve_autos(config, has_bfloat16=has_bfloat16(device))
    source = open_training_images(config.data)
    backbone = build_backbone(config.model, config.views.image_size, config.run.seed)
    lines = [
        to_yaml(config),
        f"images            {len(source):,} in {config.data.root}, fingerprint {source.fingerprint()[:12]}",
    ]
    lines += [f"processes         {num_processes} on {device.type}"]
    stages = config.resolved_stages()
    check_stages(stages, len(source), backbone, num_processes)
    for stage in stages:
        lines += ["", f"stage {stage.name}", *_stage_lines(stage, len(source), backbone, num_processes)]
    return "\n".join(lines)


def _stage_lines(stage: StageConfig, num_samples: int, backbone: Backbone, num_processes: int) -> Iterator[str]:
    train = stage.train
    steps = epoch_length(stage).num_steps(num_samples)
    yield f"steps an epoch    {steps:,} of {train.batch_size} images: {steps * train.batch_size:,} images"
    yield f"steps in all      {steps * train.num_epochs:,}"
    method = build_method(stage, backbone, 0, Samples(num_samples, range(num_samples), torch.device("cpu")))
    clusters = clustering_stage(stage)
    if clusters is not None:
        yield from _clustering_lines(clusters, method, num_samples, num_processes, steps)
    yield f"checkpoint        {_size(_checkpoint_bytes(stage.train, clusters, method, num_samples))}"


def _clustering_lines(
    stage: StageConfig, method: Method, num_samples: int, num_processes: int, steps: int
) -> Iterator[str]:
    clustering = stage.clustering
    takes_neighbors = method_class(stage).takes == "neighbors"
    rows_per_rank = -(-num_samples // num_processes)
    raw_dimensions, dimensions = _dimensions(stage, method)
    raw_bytes = 2 * rows_per_rank * raw_dimensions
    where = "in memory" if raw_bytes <= stage.features.memory_limit_gib * GIB else "in a memory-mapped file"
    reduced_bytes = 4 * rows_per_rank * dimensions
    placement, reason = choose_placement(num_samples, dimensions, clustering.gather_limit_gib, num_processes)
    if clustering.placement != "auto":
        placement, reason = clustering.placement, "clustering.placement says so"
    placement, reason = _FIXED_PLACEMENTS.get(clustering.method, (placement, reason))
    results_bytes = sum(4 * count * (dimensions + 1) + 8 * num_samples for count in clustering.counts)
    on_rank0 = results_bytes + (4 * num_samples * dimensions if placement == "rank0" else reduced_bytes)
    if not takes_neighbors:
        yield f"reassignment      every {clustering.every_num_epochs * steps:,} steps"
    shape = f"{rows_per_rank:,} x {raw_dimensions}"
    yield f"raw features      {_size(raw_bytes)} a rank ({shape} in half precision), {where}"
    if dimensions != raw_dimensions:
        moments_bytes = 8 * raw_dimensions**2
        yield f"PCA moments       {_size(moments_bytes)} a rank ({raw_dimensions} x {raw_dimensions} in float64)"
    yield f"reduced features  {_size(reduced_bytes)} a rank ({rows_per_rank:,} x {dimensions} in float32)"
    if takes_neighbors:
        yield f"neighbours        {_size(8 * num_samples * stage.scan.num_neighbors)} a rank"
    else:
        name = "k-means" if clustering.method == "kmeans" else clustering.method
        yield f"{name:<17} {placement}: {reason}"
        yield f"                  {_size(on_rank0)} on rank 0, {_size(reduced_bytes + results_bytes)} elsewhere"


def _dimensions(stage: StageConfig, method: Method) -> tuple[int, int]:
    """Of the raw rows and of the rows that are clustered."""
    raw = method.embedder().num_features
    return raw, raw if method_class(stage).clusters_embeddings else stage.features.pca_dimensions or raw


def _checkpoint_bytes(train: TrainSection, clusters: StageConfig | None, method: Method, num_samples: int) -> int:
    """The method, the optimizer's moments, and what clustering made."""
    num_values = sum(tensor.numel() for tensor in (*method.parameters(), *method.buffers()))
    for group in method.parameter_groups():
        has_momentum = group.get("momentum", train.momentum) > 0
        moments = 2 if train.optimizer in ("adam", "adamw") else int(has_momentum)
        num_values += moments * sum(parameter.numel() for parameter in group["params"])
    if clusters is None:
        return 4 * num_values
    if method_class(clusters).takes == "neighbors":
        return 4 * num_values + 8 * num_samples * clusters.scan.num_neighbors
    raw_dimensions, dimensions = _dimensions(clusters, method)
    heads = clusters.clustering.counts
    num_values += sum(count * dimensions for count in heads)
    if method.bank is not None:
        num_values += num_samples * method.bank.num_views * dimensions
    elif not method_class(clusters).clusters_embeddings and clusters.features.pca_dimensions:
        num_values += raw_dimensions * (dimensions + 1)
    return 4 * num_values + 8 * num_samples * len(heads)


def _size(num_bytes: int) -> str:
    """Three digits and a unit."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"
