"""One row: a run that is trained to its end, however often it is interrupted, and what its features are worth."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.methods.rows import Row
from dcdist.errors import ExitCode
from dcdist.evaluate import evaluate
from dcdist.evaluate.measured import Options
from dcdist.evaluate.report import Report
from dcdist.run_directory import RunDirectory

NUM_NEIGHBORS = 20
WHITENING_DIMENSIONS = 64  # the same for every row, whatever the configs' own summaries take


class TrainingFailed(Exception):
    """A run ended, and not because it was done or made room."""


def train(config: Path, overrides: Sequence[str]) -> None:
    """`dcdist train`, again for as long as it says so. Raises TrainingFailed with its exit code.

    The run ends with this process: a SIGTERM is passed on, and the run saves.
    """
    command = [sys.executable, "-m", "dcdist", "train", str(config), *overrides]
    code = int(ExitCode.RUN_AGAIN)
    while code == ExitCode.RUN_AGAIN:
        process = subprocess.Popen(command)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code:
        raise TrainingFailed(f"{' '.join(command)} ended with exit code {code}")


def wall_seconds(run: RunDirectory) -> tuple[float, int]:
    """Seconds that a run took, from the first to the last record of each of its attempts; and how many there were."""
    total, attempts = 0.0, 0
    for number in run.attempt_numbers():
        path = run.metrics_file(number)
        if not run.storage.exists(path):
            continue
        lines = run.storage.read_bytes(path).split(b"\n")[:-1]  # what a kill left half written has no end of line
        times = [json.loads(line)["time"] for line in lines]
        if times:
            total, attempts = total + times[-1] - times[0], attempts + 1
    return total, attempts


def measure(run_dir: Path, data: str, feature_sets: Sequence[str]) -> dict[str, Row]:
    """What the features of a finished run are worth, by name of the feature set."""
    options = Options(
        data=data,
        neighbors=(NUM_NEIGHBORS,),
        whitening_dimensions=WHITENING_DIMENSIONS,
        feature_sets=tuple(feature_sets),
    )
    reports = evaluate(str(run_dir), ("knn", "linear", "clusters"), options)
    attempt = _newest_attempt(RunDirectory(str(run_dir)))
    common = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": attempt["hardware"],
        "versions": attempt["versions"],
        "git": attempt["git"],
        "evaluation_seconds": {kind: report["seconds"] for kind, report in reports.items()},
    }
    return {name: {"figures": _figures(reports, name), **common} for name in feature_sets}


def describe_run(run_dir: Path) -> Row:
    """How a finished run came to its end."""
    run = RunDirectory(str(run_dir))
    seconds, attempts = wall_seconds(run)
    num_processes = _newest_attempt(run)["num_processes"]
    return {"run": run_dir.name, "wall_seconds": seconds, "attempts": attempts, "num_processes": num_processes}


def _newest_attempt(run: RunDirectory) -> dict[str, Any]:
    return run.read_attempt(run.attempt_numbers()[-1])


def _figures(reports: dict[str, Report], name: str) -> dict[str, Any]:
    """The figures of one row; those of the read-outs are means over the evaluation's own seeds."""
    knn, linear, clusters = (_row(reports[kind], name) for kind in ("knn", "linear", "clusters"))
    figures = {"knn": knn["top1"][str(NUM_NEIGHBORS)], "linear": linear["top1"]["mean"]}
    for readout in ("final", "plain", "whitened", "neighbors"):
        if readout in clusters:
            scores = clusters[readout]["scores"]
            figures[readout] = {
                "purity_train": scores["train"]["purity"]["mean"],
                "accuracy_train": scores["train"]["accuracy"]["mean"],
                "nmi_train": scores["train"]["nmi"]["mean"],
                "accuracy_heldout": scores["heldout"]["by_train_naming"]["mean"],
            }
    return figures


def _row(report: Report, name: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in report["rows"] if row["name"] == name)
    return row
