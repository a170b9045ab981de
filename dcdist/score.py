"""The summary at the end of a run: raw pixels, the untrained and the trained network, by the same read-outs.

Labels serve these scores alone. Shapes: N images, D features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dcdist.build.run import build_backbone
from dcdist.build.stage import Surroundings
from dcdist.data.preparation import Preparation
from dcdist.data.source import ImageSource
from dcdist.data.transforms import View
from dcdist.engine.pipeline import Stage
from dcdist.engine.readout import assign_images
from dcdist.evaluation.clusters import accuracy_by_naming, cluster_scores
from dcdist.evaluation.summary import SummaryRow, evaluate_features, render_summary, summary_dict
from dcdist.faults import fault_point
from dcdist.features import ImagePass, extract_features
from dcdist.metrics.jsonl import read_metrics
from dcdist.models.backbone import Backbone
from dcdist.run_directory import RunDirectory

LARGEST_PIXEL_SIDE = 32  # raw pixels of larger images are shrunk to this first


def summarise(shared: Surroundings, stage: Stage, run_directory: RunDirectory) -> str | None:
    """Scores a finished run into RUN/evaluations/summary-NNNN.json; its text on rank 0, None elsewhere. Collective."""
    trained = stage.trainer.method.backbone
    untrained = build_backbone(shared.config.model, shared.config.views.image_size, shared.config.run.seed)
    shared.numerics.place(untrained)
    images = stage.trainer.images
    pixels, pixel_images = _pixels(images)
    rows = []
    for name, backbone, how in (
        ("raw pixels", pixels, pixel_images),
        ("untrained network", untrained, images),
        ("trained network", trained, images),
    ):
        fault_point("score:row")
        row = _row(name, backbone, how, shared)
        if row is not None:
            rows.append(row)
    clusters = _final_clusters(shared, stage)
    if not shared.collectives.is_main:
        return None
    losses = list(_losses(run_directory, stage.name))
    content = {**summary_dict(rows), "clusters": clusters, "losses": losses}
    run_directory.storage.write_bytes(run_directory.evaluation_file("summary"), json.dumps(content, indent=1).encode())
    names = shared.source.label_names
    return "\n\n".join([render_summary(rows), _render_clusters(clusters, names), _render_losses(losses)])


def _pixels(images: ImagePass) -> tuple[Backbone, ImagePass]:
    """Raw pixels in 0..1 as if a network had computed them."""
    side = min(images.view.size, LARGEST_PIXEL_SIDE)
    resize = round((images.view.resize or images.view.size) * side / images.view.size)
    view = View(size=side, crop="center", resize=resize)
    nothing = Preparation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    backbone = Backbone(nn.Identity(), nn.Sequential(), nn.Flatten(), 3, 3 * side * side, features_before_relu=False)
    return backbone, replace(images, view=view, preparation=nothing)


def _row(name: str, backbone: Backbone, images: ImagePass, shared: Surroundings) -> SummaryRow | None:
    train = _labelled_features(backbone, shared.source, images, shared)
    test = _labelled_features(backbone, shared.heldout_source, images, shared) if shared.heldout_source else None
    if train is None:
        return None
    evaluation = shared.config.evaluation
    test_features, test_labels = test or (None, None)
    return evaluate_features(
        name,
        *train,
        test_features,
        test_labels,
        num_classes=evaluation.num_clusters or int(train[1].max()) + 1,
        seed=shared.config.run.seed,
        whitening_dimensions=evaluation.whitening_dimensions,
        linear=evaluation.linear,
    )


def _labelled_features(
    backbone: Backbone, source: ImageSource, images: ImagePass, shared: Surroundings
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Raw features [N, D] and labels [N] of the labelled images on rank 0. Collective."""
    raw = extract_features(backbone, source, images, shared.collectives, shared.boundary.between_steps)
    blocks = [block.float().cpu() for block in raw.blocks()]
    own = torch.cat(blocks) if blocks else torch.empty(0, backbone.num_features)
    features = shared.collectives.gather_rows(own)
    sample_ids = shared.collectives.gather_rows(raw.ids())
    if features is None or sample_ids is None:
        return None
    assert source.labels is not None
    labels = torch.from_numpy(source.labels[sample_ids.numpy()].astype(np.int64))
    return features[labels >= 0], labels[labels >= 0]


def _final_clusters(shared: Surroundings, stage: Stage) -> dict[str, Any]:
    """Scores of the run's final clustering on training and held-out images. Collective."""
    readout, images = shared.state.readout, stage.trainer.images
    backbone = stage.trainer.method.backbone
    assignments, _ = assign_images(readout, backbone, shared.source, images, shared.collectives)
    assert shared.source.labels is not None
    labels = torch.from_numpy(shared.source.labels)
    scores = cluster_scores(assignments, labels)
    figures: dict[str, Any] = {
        "num_clusters": readout.num_clusters,
        "train": {name: getattr(scores, name) for name in ("nmi", "ari", "ami", "accuracy", "purity")},
        "table": scores.table.tolist(),
    }
    heldout = shared.heldout_source
    if heldout is not None and heldout.labels is not None:
        test, _ = assign_images(readout, backbone, heldout, images, shared.collectives)
        named = accuracy_by_naming(assignments, labels, test, torch.from_numpy(heldout.labels))
        figures["heldout"] = {"by_train_naming": named.by_train_naming, "by_best_naming": named.by_best_naming}
    return figures


def _losses(run_directory: RunDirectory, stage: str) -> Iterator[dict[str, Any]]:
    for record in read_metrics(run_directory.storage):
        if record["kind"] == "epoch" and record["stage"] == stage:
            yield {name: record.get(name) for name in ("epoch", "loss", "heldout_loss")}


def _render_clusters(clusters: dict[str, Any], label_names: list[str] | None) -> str:
    table = clusters["table"]
    names = [label_names[i] if label_names else str(i) for i in range(len(table[0]))]
    width = max(8, *(len(name) for name in names))
    lines = [f"final clusters: {clusters['num_clusters']}, cluster x class on the training images"]
    if len(table) <= 20:
        lines.append(" " * 10 + "".join(f"{name:>{width + 2}}" for name in names))
        lines += [
            f"{number:>10}" + "".join(f"{count:>{width + 2}}" for count in row) for number, row in enumerate(table)
        ]
    train = clusters["train"]
    lines.append(
        f"majority purity on training images {train['purity']:.3f}, "
        f"accuracy {train['accuracy']:.3f}, NMI {train['nmi']:.3f}"
    )
    if "heldout" in clusters:
        heldout = clusters["heldout"]
        lines.append(
            f"accuracy on held-out images {heldout['by_train_naming']:.3f} (clusters named on the training images), "
            f"{heldout['by_best_naming']:.3f} (better of the namings on the held-out images)"
        )
    return "\n".join(lines)


def _render_losses(losses: list[dict[str, Any]]) -> str:
    """Some twenty epochs, evenly spread, the last one always."""
    every = -(-len(losses) // 20)
    shown = [loss for number, loss in enumerate(losses) if (len(losses) - 1 - number) % every == 0]
    held_out = any(loss["heldout_loss"] is not None for loss in losses)
    lines = ["loss by epoch    training" + "  held-out" * held_out]
    for loss in shown:
        heldout = "" if loss["heldout_loss"] is None else f"{loss['heldout_loss']:>10.4f}"
        training = "" if loss["loss"] is None else f"{loss['loss']:>10.4f}"
        lines.append(f"{loss['epoch'] + 1:>13}  {training:>10}{heldout}")
    return "\n".join(lines)
