"""The summary at the end of a run: raw pixels, the untrained and the trained network, by the same read-outs.

Labels serve these scores alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dcdist.build.run import build_backbone
from dcdist.build.stage import Surroundings
from dcdist.data.source import ImageSource
from dcdist.engine.pipeline import Stage
from dcdist.engine.readout import assign_everywhere
from dcdist.evaluation.clusters import Partition, describe_clusters, render_clusters
from dcdist.evaluation.feature_sets import TRAINED, UNTRAINED, FeatureSet, raw_pixels
from dcdist.evaluation.summary import SummaryRow, evaluate_features, render_summary, summary_dict
from dcdist.evaluation.untrained import learn_from_images
from dcdist.faults import fault_point
from dcdist.features import RawFeatures
from dcdist.metrics.jsonl import read_metrics
from dcdist.run_directory import RunDirectory


def summarise(shared: Surroundings, stage: Stage, run_directory: RunDirectory) -> str | None:
    """Scores a finished run into RUN/evaluations/summary-NNNN.json; its text on rank 0, None elsewhere. Collective."""
    untrained = build_backbone(shared.config.model, shared.config.views.image_size, shared.config.run.seed)
    images = stage.trainer.images
    images.numerics.place(untrained)
    learn_from_images(untrained, shared.source, images)
    sets = (
        raw_pixels(images),
        FeatureSet(UNTRAINED, untrained, images),
        FeatureSet(TRAINED, stage.trainer.method.backbone, images),
    )
    heldout = shared.heldout_source
    sources = [shared.source, heldout] if heldout is not None and heldout.labels is not None else [shared.source]
    rows = []
    for features in sets:
        fault_point("score:row")
        raw = [features.extract(source, shared.collectives, shared.boundary.between_steps) for source in sources]
        row = _row(features, raw, sources, shared)
        if row is not None:
            rows.append(row)
    clusters = _final_clusters(raw, sources, shared)
    if not shared.collectives.is_main:
        return None
    losses = list(_losses(run_directory, stage.name))
    content = {**summary_dict(rows), "clusters": clusters, "losses": losses}
    run_directory.storage.write_bytes(run_directory.evaluation_file("summary"), json.dumps(content, indent=1).encode())
    names = shared.source.label_names
    return "\n\n".join([render_summary(rows), render_clusters(clusters, names), _render_losses(losses)])


def _row(
    features: FeatureSet, raw: Sequence[RawFeatures], sources: Sequence[ImageSource], shared: Surroundings
) -> SummaryRow | None:
    labelled = [
        features.labelled([part], source, shared.collectives) for part, source in zip(raw, sources, strict=True)
    ]
    train, test = labelled[0], labelled[1] if len(labelled) > 1 else None
    if train is None:
        return None
    test_features, test_labels = test or (None, None)
    evaluation = shared.config.evaluation
    return evaluate_features(
        features.name,
        *train,
        test_features,
        test_labels,
        num_classes=evaluation.num_clusters or int(train[1].max()) + 1,
        seed=shared.config.run.seed,
        whitening_dimensions=evaluation.whitening_dimensions,
        linear=evaluation.linear,
        progressed=shared.recorder.progressed,
    )


def _final_clusters(raw: Sequence[RawFeatures], sources: Sequence[ImageSource], shared: Surroundings) -> dict[str, Any]:
    """The run's final clustering on training and held-out images, from the trained network's rows. Collective."""
    readout = shared.state.readout
    partitions = []
    for part, source in zip(raw, sources, strict=True):
        assignments, _ = assign_everywhere(readout, readout.rows(part), len(source), shared.collectives)
        partitions.append(Partition(assignments, torch.from_numpy(source.labels)))
    return describe_clusters(readout.num_clusters, partitions[0], *partitions[1:])


def _losses(run_directory: RunDirectory, stage: str) -> Iterator[dict[str, Any]]:
    for record in read_metrics(run_directory.storage):
        if record["kind"] == "epoch" and record["stage"] == stage:
            yield {name: record.get(name) for name in ("epoch", "loss", "heldout_loss")}


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
