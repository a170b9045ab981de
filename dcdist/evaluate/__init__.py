"""Measures a run from its directory alone, and writes RUN/evaluations/KIND-NNNN.json. Labels serve scores alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dcdist.errors import UsageError
from dcdist.evaluate.clusters import CLUSTERS
from dcdist.evaluate.kinds import KNN, LINEAR, Kind
from dcdist.evaluate.labelled_images import images_line
from dcdist.evaluate.measured import Options
from dcdist.evaluate.report import Report, header, where, write
from dcdist.evaluate.subject import Subject, open_subject
from dcdist.evaluation import untrained
from dcdist.evaluation.feature_sets import UNTRAINED
from dcdist.stored_run import read_run

KINDS: dict[str, Kind] = {"knn": KNN, "linear": LINEAR, "clusters": CLUSTERS}


def evaluate(url: str, kinds: Sequence[str], options: Options) -> dict[str, Report]:
    """Reports of several kinds from one pass over the images, by kind; each is also written into the run.

    Args:
        url: the run's folder, local or any fsspec URL. It may be running: its newest checkpoint counts.
        kinds: of KINDS.
        options: what is compared, on which images.

    Raises:
        UsageError: no run, no checkpoint, no labels, no held-out images where a kind needs them.
        RunError: no checkpoint is whole.
    """
    run = read_run(url, options.stage)
    with open_subject(run, options) as subject:
        for kind in kinds:
            if KINDS[kind].needs_heldout and subject.heldout is None:
                raise UsageError(
                    f"evaluate {kind} needs images that were kept out of training: name their split by "
                    "--heldout-split (the run's own data.heldout_split is null, or it was set to none)"
                )
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        seconds = dict.fromkeys(kinds, 0.0)
        start = time.monotonic()
        for measured in subject.measured():
            for kind in kinds:
                before = time.monotonic()
                rows[kind].append({"name": measured.name, **KINDS[kind].measure(measured, subject)})
                seconds[kind] += time.monotonic() - before
        features = time.monotonic() - start - sum(seconds.values())
        reports: dict[str, Report] = {}
        for kind in kinds:
            took = {"features": features, "scores": seconds[kind]}
            reports[kind] = {**_describe(kind, subject), "seconds": took, "rows": rows[kind]}
            write(run.directory, reports[kind])
    return reports


def render(report: Report) -> str:
    """A report for the terminal."""
    return "\n".join([f"{where(report)}, {images_line(report)}", "", *KINDS[report["kind"]].render(report)])


def _describe(kind: str, subject: Subject) -> dict[str, Any]:
    return {
        **header(kind, subject.run, subject.images.numerics.device),
        **subject.labelled.describe(subject.run),
        "num_classes": subject.num_classes,
        "seeds": list(subject.options.seeds),
        "protocol": {**KINDS[kind].protocol(subject), UNTRAINED: untrained.DESCRIPTION},
        "published": KINDS[kind].published(subject),
    }
