"""A run as the report tells it: everything that it wrote, read once and put into sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdist.metrics.partition_scores import nmi
from dcdist.report.blocks import Block, Sentence, blocks_or
from dcdist.report.choice import choose_clusters, class_majorities, sample_ids
from dcdist.report.clusterings import (
    UNREADABLE,
    Assignments,
    ClusteringFile,
    list_clusterings,
    read_assignments,
    read_keys,
    read_labels,
)
from dcdist.report.evaluations import evaluation_blocks, read_reports
from dcdist.report.examples import find_examples
from dcdist.report.history import History, read_history
from dcdist.report.images import class_map, galleries, label_names
from dcdist.report.overview import facts
from dcdist.report.settings import config_blocks, read_config, section
from dcdist.report.sizes import size_blocks
from dcdist.report.timeline import time_blocks
from dcdist.report.training import clustering_blocks, training_blocks
from dcdist.run_directory import RunDirectory

# Anchor, title and what is shown, in the order of the page.
SECTIONS = (
    ("training", "Training", "Loss by epoch, on the training images and on those that were held out."),
    ("clustering", "Clustering", "How the clusters developed from one clustering to the next."),
    ("sizes", "Cluster sizes", "How many images the clusters hold."),
    (
        "images",
        "Images",
        "The most typical images of some clusters (the smallest distances), and the least typical (the largest).",
    ),
    ("classes", "Clusters and classes", "Labels were used for scores alone, never for training."),
    ("evaluation", "Evaluation", "What dcdist evaluate measured, and the summary at the end of the run."),
    ("time", "Time", "What the run did when, and how often it was started again."),
    ("config", "Config", "The resolved config."),
)


@dataclass(frozen=True)
class RunStory:
    """One run: where it lies, its facts, and the blocks of each section by anchor."""

    url: str
    remarks: tuple[str, ...]
    facts: Mapping[str, str]
    config: Mapping[str, Any]
    blocks: Mapping[str, tuple[Block, ...]]


@dataclass(frozen=True)
class _Shown:
    """The clustering that images are shown of."""

    file: ClusteringFile
    assignments: Assignments
    labels: NDArray[np.int64] | None  # [N], -1 without one


def tell(run: RunDirectory, data_root: str | None = None) -> RunStory:
    """Reads a run.

    Args:
        run: its folder.
        data_root: where its data lie here, for thumbnails; by default where its config says.

    Raises:
        UsageError: it is no run.
        StorageError: the server that it lies on fails.
    """
    history = read_history(run)
    text, config = read_config(run.storage)
    reports, evaluation_remarks = read_reports(run.storage)
    remarks = [*history.remarks, *evaluation_remarks]
    shown = _shown_clustering(run, history, remarks)
    images, classes = _images_and_classes(run, history, shown, section(config, "data"), reports, data_root)
    blocks = {
        "training": training_blocks(history),
        "clustering": clustering_blocks(history),
        "sizes": size_blocks(run.storage, history),
        "images": images,
        "classes": classes,
        "evaluation": evaluation_blocks(reports),
        "time": time_blocks(history),
        "config": config_blocks(text, config),
    }
    found = facts(history, config, reports, _clustering_facts(shown))
    return RunStory(str(run), tuple(remarks), found, config, blocks)


def _shown_clustering(run: RunDirectory, history: History, remarks: list[str]) -> _Shown | None:
    """The final clustering of the last stage that has one, else the newest of all; None where none can be read."""
    files = list_clusterings(run.storage, history.stages())
    finals = [file for file in files if file.epoch is None]
    for file in reversed([*files, *finals]):
        try:
            assignments = read_assignments(run.storage, file.path)
        except UNREADABLE:
            remarks.append(f"{file.path} is damaged and left out.")
            continue
        try:
            labels = read_labels(run.storage, len(assignments.clusters))
        except UNREADABLE:
            labels = None
            remarks.append("keys.parquet is missing or damaged: labels and names of images are not known.")
        return _Shown(file, assignments, labels)
    return None


def _images_and_classes(
    run: RunDirectory,
    history: History,
    shown: _Shown | None,
    data: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    data_root: str | None,
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    if shown is None:
        missing = (Sentence("No clustering has been written yet."),)
        return missing, missing
    chosen = choose_clusters(shown.assignments, shown.labels)
    wanted = list(sample_ids(chosen))
    examples = find_examples(run, history, wanted, data, data_root)
    names = label_names(reports, examples.label_names)
    keys = read_keys(run.storage, wanted)
    pictures = galleries(chosen, examples.thumbnails, shown.labels, names, keys)
    what = f"This is {shown.file.words()}"
    what += f", head 0 of {shown.assignments.num_heads}." if shown.assignments.num_heads > 1 else "."
    if shown.file.epoch is not None:
        what += " The run has no final clustering yet."
    if pictures and shown.labels is not None:
        what += " A dashed frame: the image is not of its cluster's most frequent class."
    sentences = [Sentence(what)] + ([Sentence(examples.remark, warns=True)] if examples.remark else [])
    images = (*sentences, *blocks_or(pictures, "There are no pictures to show."))
    if shown.labels is None:
        return images, (Sentence("The images have no labels, so clusters cannot be compared with classes."),)
    return images, class_map(shown.assignments, shown.labels, names, shown.file.words())


def _clustering_facts(shown: _Shown | None) -> dict[str, str]:
    if shown is None:
        return {"clusters": "none yet"}
    clusters = shown.assignments.clusters
    number = len(np.unique(clusters[clusters >= 0]))
    found = {"clusters": f"{number:,} with images, in {shown.file.words()}"}
    without = int((clusters < 0).sum())
    if without:
        found["images without a cluster"] = f"{without:,}"
    if shown.labels is not None and ((clusters >= 0) & (shown.labels >= 0)).any():
        majority, labelled = class_majorities(clusters, shown.labels, int(clusters.max()) + 1)
        found["NMI with the labels"] = f"{nmi(clusters, shown.labels):.3f}"
        found["purity"] = f"{majority.sum() / labelled.sum():.3f}"
    return found
