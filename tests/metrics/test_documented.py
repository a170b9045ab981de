"""/metrics of a real run against the tables of docs/metrics.md."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.runs.conftest import digits_folder, experiment  # noqa: F401
from tests.runs.processes import RunningRun, start_run, write_config

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
# What needs a GPU, or a method that reports more than its losses.
ABSENT = {"dcdist_gpu_memory_bytes", "dcdist_figure"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> str:  # noqa: F811
    """All figures of a run with labels that was killed once, one reading after the other."""
    folder = tmp_path_factory.mktemp("documented")
    discovery = folder / "discovery"
    config = write_config(folder / "config.yaml", experiment(digits_folder, folder / "run"))
    overrides = ["metrics.prometheus_port=0", f"metrics.prometheus_discovery={discovery}", "train.num_epochs=10"]
    first = start_run(config, overrides)
    try:
        while not re.search(r"^dcdist_steps_total\{.*\} [1-9]", read(discovery), re.MULTILINE):
            assert is_alive(first), first.errors()
            time.sleep(0.01)
    finally:
        first.signal(signal.SIGKILL)
        first.wait()
    second = start_run(config, overrides)
    pages: list[str] = []
    try:
        while is_alive(second):  # which it is until somebody has read the last figures
            pages += filter(None, [read(discovery)])
            time.sleep(0.1)
    finally:
        codes = second.wait()
    assert codes == [0], second.errors()
    assert re.search(r"^dcdist_finished\{.*\} 1\.0$", pages[-1], re.MULTILINE)
    return "\n".join(pages)


def is_alive(run: RunningRun) -> bool:
    return all(process.is_alive() for process in run.processes)


def read(discovery: Path) -> str:
    """/metrics where the only file in the folder says, nothing while nobody answers."""
    try:
        (path,) = discovery.glob("*.json")
        (entry,) = json.loads(path.read_bytes())
        with urllib.request.urlopen(f"http://{entry['targets'][0]}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except (ValueError, OSError):  # no file, or nobody listens
        return ""


def documented_metrics() -> dict[str, tuple[str, set[str]]]:
    """Name -> type and labels, of the tables in docs/metrics.md."""
    rows = re.findall(r"^\| `(dcdist_\w+)` \| (\w+) \| ([\w, ]+) \|", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, set(labels.split(", "))) for name, kind, labels in rows}


def samples(page: str) -> list[tuple[str, dict[str, str], float]]:
    """Name, labels and value."""
    return [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
        for name, labels, value in re.findall(r"^(dcdist_\w+)\{(.*)\} (\S+)$", page, re.MULTILINE)
    ]


def test_what_is_served_is_what_is_documented(page: str) -> None:
    documented = documented_metrics()
    exported: dict[str, tuple[str, set[str]]] = {}
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    for name, labels, _ in samples(page):
        family = name if name in kinds else re.sub(r"_(bucket|count|sum)$", "", name)
        if family.endswith(("_gcount", "_gsum")):
            continue  # of a gaugehistogram, a type that this text format has no name for
        kind = "gaugehistogram" if f"{family}_gcount" in kinds else kinds[family]
        exported[family] = (kind, exported.get(family, (kind, set()))[1] | (labels.keys() - {"le"}))
    assert documented.keys() - exported.keys() == ABSENT
    assert exported == {name: documented[name] for name in exported}


def test_every_phase_is_served(page: str) -> None:
    seconds = {labels["phase"]: value for name, labels, value in samples(page) if "_phase_duration_" in name}
    assert seconds.keys() >= {"features", "cluster", "train", "readout"}
    assert min(seconds.values()) > 0
