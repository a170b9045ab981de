"""The summary at the end of a run: raw pixels, the untrained and the trained network, by the same read-outs.

Labels serve these scores alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dcdist.build.run import build_backbone
from dcdist.build.stage import Surroundings
from dcdist.data.source import ImageSource
from dcdist.engine.pipeline import Stage
from dcdist.engine.readout import assign_everywhere
from dcdist.engine.undecodable import describe_undecodable
from dcdist.errors import RunError, UsageError
from dcdist.evaluation.clusters import Partition, describe_clusters, render_clusters
from dcdist.evaluation.feature_sets import TRAINED, UNTRAINED, FeatureSet, raw_pixels
from dcdist.evaluation.summary import SummaryRow, evaluate_features, render_summary, summary_dict
from dcdist.evaluation.untrained import learn_from_images
from dcdist.faults import fault_point
from dcdist.features import RawFeatures, gather_failures
from dcdist.metrics.jsonl import read_metrics
from dcdist.run_directory import RunDirectory

logger = logging.getLogger(__name__)

# One process compares all images with all, and the others wait for it: of so many it takes minutes.
MOST_IMAGES = 100_000


def summarise(shared: Surroundings, stage: Stage, run_directory: RunDirectory) -> str | None:
    """Scores a finished run into RUN/evaluations/summary-NNNN.json; its text on rank 0, None elsewhere. Collective.

    All that was trained is saved already: where nothing can be scored, the log says why, and that is all.
    """
    if len(shared.source) > MOST_IMAGES:
        many = f"{len(shared.source):,} images, of more than {MOST_IMAGES:,}"
        _warn(shared, f"{many} there is no summary: `dcdist evaluate` measures the run")
        return None
    untrained = build_backbone(shared.config.model, shared.config.views.image_size, shared.config.run.seed)
    images = stage.trainer.images
    images.numerics.place(untrained)
    learn_from_images(untrained, shared.source, images)
    sets = (
        raw_pixels(images),
        FeatureSet(UNTRAINED, untrained, images),
        FeatureSet(TRAINED, stage.trainer.method.backbone, images),
    )
    sources = [source for source in (shared.source, shared.heldout_source) if source is not None]
    rows = []
    for features in sets:
        fault_point("score:row")
        raw = [features.extract(source, shared.collectives, shared.boundary.between_steps) for source in sources]
        if features is sets[0]:  # the first pass tells which images decode
            sources = _scorable(raw, sources, shared)
            if not sources:
                return None
        try:
            rows.append(_row(features, raw[: len(sources)], sources, shared))
        except _Unscorable as error:
            _warn(shared, f"no summary, {features.name} cannot be scored: {error}. The run itself is complete.")
            return None
    clusters = _final_clusters(raw, sources, shared)
    if not shared.collectives.is_main:
        return None
    stage.trainer.journal.evaluation(**_figures(rows[-1]))
    losses = list(_losses(run_directory, stage.name))
    content = {**summary_dict(rows), "clusters": clusters, "losses": losses}
    run_directory.storage.write_bytes(run_directory.evaluation_file("summary"), json.dumps(content, indent=1).encode())
    names = shared.source.label_names
    return "\n\n".join([render_summary(rows), render_clusters(clusters, names), _render_losses(losses)])


def _figures(trained: SummaryRow) -> dict[str, float]:
    figures = {"nmi": trained.plain.nmi, "accuracy": trained.plain.accuracy, "knn": trained.knn}
    return figures if trained.linear is None else {**figures, "linear": trained.linear}


class _Unscorable(Exception):
    """Why features cannot be scored, on every rank alike."""


def _warn(shared: Surroundings, message: str) -> None:
    if shared.collectives.is_main:
        logger.warning(message)


def _scorable(raw: Sequence[RawFeatures], sources: list[ImageSource], shared: Surroundings) -> list[ImageSource]:
    """The sources without held-out images that cannot be scored; empty where the training images cannot. Collective."""
    scorable = []
    for part, source in zip(raw, sources, strict=True):
        is_training, split = source is shared.source, shared.config.data.heldout_split
        failures = gather_failures(part.failures, shared.collectives)
        if failures:
            _warn(shared, describe_undecodable(source, failures, None if is_training else split))
        labelled = [] if source.labels is None else np.flatnonzero(source.labels >= 0).tolist()
        if not failures.keys() >= set(labelled):
            scorable.append(source)
            continue
        why = "that decodes has a label" if labelled else "has a label"
        if is_training:
            _warn(shared, f"no summary: no training image {why}. The run itself is complete.")
            return []
        _warn(shared, f"the summary is of training images alone: no image of the held-out split {split!r} {why}")
    return scorable


def _row(
    features: FeatureSet, raw: Sequence[RawFeatures], sources: Sequence[ImageSource], shared: Surroundings
) -> SummaryRow:
    """The scores of a feature set, on every rank. Collective. Raises _Unscorable on every rank."""
    labelled = [
        features.labelled([part], source, shared.collectives) for part, source in zip(raw, sources, strict=True)
    ]
    found = shared.collectives.on_main(lambda: _evaluate(features.name, labelled, shared))
    if isinstance(found, str):
        raise _Unscorable(found)
    return found


def _evaluate(
    name: str, labelled: Sequence[tuple[torch.Tensor, torch.Tensor] | None], shared: Surroundings
) -> SummaryRow | str:
    """On rank 0: the scores of features and labels, or why there are none."""
    train, test = labelled[0], labelled[1] if len(labelled) > 1 else None
    assert train is not None
    test_features, test_labels = test or (None, None)
    evaluation = shared.config.evaluation
    try:
        return evaluate_features(
            name,
            *train,
            test_features,
            test_labels,
            num_classes=evaluation.num_clusters or int(train[1].max()) + 1,
            seed=shared.config.run.seed,
            whitening_dimensions=evaluation.whitening_dimensions,
            linear=evaluation.linear,
            progressed=shared.recorder.progressed,
        )
    except (UsageError, RunError) as error:
        return str(error).rstrip(".")


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
