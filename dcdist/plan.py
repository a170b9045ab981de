"""What a run will need, without starting it: `dcdist train CONFIG --plan`.

Shapes: N images, D raw features, d reduced ones, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from dcdist.build import GIB, build_backbone, check_fits, open_data
from dcdist.clustering.kmeans import choose_placement
from dcdist.config.identity import resolve_autos
from dcdist.config.load import to_yaml
from dcdist.config.schema import ExperimentConfig, StageConfig
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import has_bfloat16


def describe_plan(config: ExperimentConfig, num_processes: int) -> str:
    """The resolved config and, stage by stage, the memory, steps, placement and checkpoint size it implies.

    Raises:
        UsageError: what could not run: K, PCA dimensions or processes that do not fit the data.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and config.launch.device != "cpu" else "cpu")
    config = resolve_autos(config, has_bfloat16=has_bfloat16(device))
    source = open_data(config.data, config.data.split)
    backbone = build_backbone(config.model, config.views.image_size, config.run.seed)
    lines = [
        to_yaml(config),
        f"images            {len(source):,} in {config.data.root}, fingerprint {source.fingerprint()[:12]}",
    ]
    lines += [f"processes         {num_processes} on {device.type}"]
    for stage in config.resolved_stages():
        check_fits(stage, len(source), backbone.num_features, num_processes)
        lines += ["", f"stage {stage.name}", *_stage_lines(stage, len(source), backbone, num_processes)]
    return "\n".join(lines)


def _stage_lines(stage: StageConfig, num_samples: int, backbone: Backbone, num_processes: int) -> Iterator[str]:
    train, clustering = stage.train, stage.clustering
    raw_dimensions = backbone.num_features
    dimensions = stage.features.pca_dimensions or raw_dimensions
    rows_per_rank = -(-num_samples // num_processes)
    steps = train.steps_per_epoch or -(-num_samples // train.batch_size)
    raw_bytes = 2 * rows_per_rank * raw_dimensions
    where = "in memory" if raw_bytes <= stage.features.memory_limit_gib * GIB else "in a memory-mapped file"
    moments_bytes = 8 * raw_dimensions**2 if stage.features.pca_dimensions else 0
    reduced_bytes = 4 * rows_per_rank * dimensions
    placement, reason = choose_placement(num_samples, dimensions, clustering.gather_limit_gib, num_processes)
    if clustering.placement != "auto":
        placement, reason = clustering.placement, "clustering.placement says so"
    results_bytes = 4 * clustering.num_clusters * (dimensions + 1) + 8 * num_samples
    on_rank0 = results_bytes + (4 * num_samples * dimensions if placement == "rank0" else reduced_bytes)
    yield f"steps an epoch    {steps:,} of {train.batch_size} images: {steps * train.batch_size:,} images"
    yield f"steps in all      {steps * train.num_epochs:,}"
    yield f"reassignment      every {clustering.every_num_epochs * steps:,} steps"
    shape = f"{rows_per_rank:,} x {raw_dimensions}"
    yield f"raw features      {_size(raw_bytes)} a rank ({shape} in half precision), {where}"
    if moments_bytes:
        yield f"PCA moments       {_size(moments_bytes)} a rank ({raw_dimensions} x {raw_dimensions} in float64)"
    yield f"reduced features  {_size(reduced_bytes)} a rank ({rows_per_rank:,} x {dimensions} in float32)"
    yield f"k-means           {placement}: {reason}"
    yield f"                  {_size(on_rank0)} on rank 0, {_size(reduced_bytes + results_bytes)} elsewhere"
    yield f"checkpoint        {_size(_checkpoint_bytes(stage, backbone, num_samples, dimensions))}"


def _checkpoint_bytes(stage: StageConfig, backbone: nn.Module, num_samples: int, dimensions: int) -> int:
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    buffers = sum(buffer.numel() for buffer in backbone.buffers())
    num_clusters = stage.clustering.num_clusters
    head = num_clusters * (_num_features(backbone) + 1)
    copies = 3 if stage.train.optimizer == "adamw" else 2  # the weights and each of the optimizer's moments
    head_copies = copies if stage.train.optimizer == "adamw" or stage.deepcluster.head_momentum else 1
    pca = _num_features(backbone) * (dimensions + 1) if stage.features.pca_dimensions else 0
    return 4 * (copies * weights + buffers + head_copies * head + pca + num_clusters * dimensions) + 8 * num_samples


def _num_features(backbone: nn.Module) -> int:
    assert isinstance(backbone, Backbone)
    return backbone.num_features


def _size(num_bytes: int) -> str:
    """Three digits and a unit."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"
