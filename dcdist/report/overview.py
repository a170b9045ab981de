"""A run at a glance: the facts that runs are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from dcdist.metrics.progress import format_duration
from dcdist.report.blocks import Table
from dcdist.report.evaluations import headline_scores
from dcdist.report.history import History, number_in
from dcdist.report.series import epoch_curve
from dcdist.report.settings import section
from dcdist.report.timeline import attempt_spans, ending

_UNKNOWN = "not known"
_LONGEST_REASON = 300  # letters


def facts(
    history: History, config: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], clusters: Mapping[str, str]
) -> dict[str, str]:
    """Facts of a run, in words, by name.

    Args:
        history: of the run.
        config: its values.
        reports: its evaluations.
        clusters: facts of its clustering.
    """
    spans = attempt_spans(history)
    newest = history.attempts[-1].description if history.attempts else {}
    repeated = sum(int(number_in(attempt.description, "repeated_steps") or 0) for attempt in history.attempts)
    restarts = max(len(history.attempts) - 1, 0)
    found = {
        "state": state(history),
        "method": _methods(config),
        "data": str(section(config, "data").get("root", _UNKNOWN)),
        "training images": _number(newest.get("data"), "num_images"),
        "trained": trained(history),
    }
    for stage in history.stages():
        where = f", stage {stage}" if len(history.stages()) > 1 else ""
        for name, figure in (("training loss", "loss"), ("held-out loss", "heldout_loss")):
            _, losses = epoch_curve(history, stage, figure)
            if len(losses):
                found[f"{name}, last epoch{where}"] = f"{losses[-1]:.4f}"
    found |= dict(clusters) | headline_scores(reports)
    found["time running"] = format_duration(sum(span.seconds for span in spans)) if spans else _UNKNOWN
    found["restarts"] = f"{restarts}, {repeated:,} steps repeated" if restarts else "none"
    found["hardware"] = _hardware(newest)
    found["versions"] = _versions(newest)
    return found


def table_of_facts(names: Sequence[str], runs: Sequence[Mapping[str, str]]) -> Table:
    """A column a run."""
    keys = _in_order(runs)
    rows = tuple((key, *(run.get(key, "-") for run in runs)) for key in keys)
    return Table("", ("", *names) if len(names) > 1 else (), rows)


def state(history: History) -> str:
    """How the run stands, as its newest attempt says."""
    if not history.attempts:
        return "not started"
    newest = history.attempts[-1]
    how = ending(newest, is_last=True)
    if how is None:
        return "running, or killed: no end is recorded"
    reason = shorten(str(newest.ended.get("reason") or ""), _LONGEST_REASON, placeholder=" …")
    if not reason or how == "done":
        return how
    return reason if reason.lower().startswith(how) else f"{how}: {reason}"


def trained(history: History) -> str:
    """Epochs and steps of each stage."""
    parts = []
    for stage in history.stages():
        epochs = len({record["epoch"] for record in history.of_kind("epoch", stage)})
        begins = [record for record in history.of_kind("event", stage) if record.get("event") == "stage_begin"]
        planned = number_in(begins[-1], "num_epochs") if begins else None
        parts.append(f"{stage}: {epochs} of {int(planned)} epochs" if planned else f"{stage}: {epochs} epochs")
    steps = max((record["step"] for record in history.records), default=0)
    return f"{', '.join(parts)}; {steps:,} steps" if parts else "nothing yet"


def _in_order(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """All keys; those that only a later run has stand behind the one that they follow there."""
    keys: list[str] = []
    for run in runs:
        place = 0
        for key in run:
            if key in keys:
                place = keys.index(key) + 1
            else:
                keys.insert(place, key)
                place += 1
    return keys


def _methods(config: Mapping[str, Any]) -> str:
    stages = config.get("stages")
    named = [stage.get("method") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    top = config.get("method")
    methods = [str(name or top) for name in named] or ([str(top)] if top else [])
    network = section(config, "model").get("name")
    return ", then ".join(methods) + (f"; {network}" if network else "") if methods else _UNKNOWN


def _number(values: Any, name: str) -> str:
    number = number_in(values, name) if isinstance(values, dict) else None
    return _UNKNOWN if number is None else f"{int(number):,}"


def _hardware(description: Mapping[str, Any]) -> str:
    hardware = description.get("hardware")
    parts = []
    if isinstance(hardware, dict):
        parts = [str(hardware[name]) for name in ("device", "processor", "gpu", "gpus") if hardware.get(name)]
    number = description.get("num_processes")
    launcher = description.get("launcher")
    if number is not None:
        parts.insert(0, f"{number} process{'es' * (number != 1)}")
    if isinstance(launcher, dict) and launcher.get("name") not in (None, "local"):
        parts.append(f"by {launcher['name']}")
    return ", ".join(parts) or _UNKNOWN


def _versions(description: Mapping[str, Any]) -> str:
    versions, git = description.get("versions"), description.get("git")
    parts = []
    if isinstance(versions, dict):
        parts = [f"{name} {versions[name]}" for name in ("dcdist", "torch") if name in versions]
    if isinstance(git, dict) and git.get("commit"):
        parts.append(f"commit {str(git['commit'])[:10]}" + (" with changes" if git.get("dirty") else ""))
    return ", ".join(parts) or _UNKNOWN
