"""What a run's own evaluations say of the weights that are exported: the newest report of each kind, small."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dcdist.evaluation.feature_sets import TRAINED
from dcdist.run_directory import EVALUATIONS
from dcdist.stored_run import StoredRun

_REPORT = re.compile(r"(?P<kind>.+)-(?P<number>\d{4,})\.json")
DESCRIPTION = ("time", "data", "heldout", "protocol")  # what of a report goes with its figures
SUMMARY = "summary"  # the report that training itself writes when it ends


def read_scores(run: StoredRun) -> dict[str, Any]:
    """By kind, the newest report of these weights: how it was measured, and the trained network's figures.

    Reports of other checkpoints are left out, and so are lists (figures by seed, tables) and other networks.
    """
    scores: dict[str, Any] = {}
    for kind, name, report in _newest_first(run):
        if kind in scores or not _is_of(report, run):
            continue
        rows = [_small(row) for row in report["rows"] if str(row.get("name")).startswith(TRAINED)]
        if rows:
            described = {key: _small(report[key]) for key in DESCRIPTION if report.get(key) is not None}
            scores[kind] = {"report": name, **described, "rows": rows}
    return dict(sorted(scores.items()))


def _newest_first(run: StoredRun) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    storage = run.directory.storage
    matches = [match for match in map(_REPORT.fullmatch, storage.list(EVALUATIONS)) if match]
    for match in sorted(matches, key=lambda match: int(match["number"]), reverse=True):
        report = json.loads(storage.read_bytes(f"{EVALUATIONS}/{match[0]}"))
        yield match["kind"], match[0], report


def _is_of(report: Mapping[str, Any], run: StoredRun) -> bool:
    if report["kind"] != SUMMARY:
        return bool(report["checkpoint"] == str(run.checkpoint))
    # A summary names no checkpoint: it is of the weights at the end of the last stage, after the last of its epochs.
    is_the_end = run.stage.name == run.config.resolved_stages()[-1].name and bool(run.position["stage_done"])
    epochs = [loss["epoch"] for loss in report["losses"]]
    return is_the_end and max(epochs, default=-1) + 1 == run.position["epoch"]


def _small(value: Any) -> Any:
    """Without lists, and without what is empty then."""
    if not isinstance(value, Mapping):
        return value
    entries = {key: _small(entry) for key, entry in value.items() if not isinstance(entry, list)}
    return {key: entry for key, entry in entries.items() if entry != {}}
