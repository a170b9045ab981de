"""torchvision and faiss, tried in a process of their own."""

from __future__ import annotations

import re
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dcdist.doctor import native
from dcdist.doctor.check import Check
from dcdist.doctor.probe import Probe
from tests.doctor.helpers import ROOT


def probed(monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float = 90) -> list[Check]:
    """What a probe finds that imports from this folder first."""
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    probe = Probe("cpu")
    try:
        return probe.checks(seconds)
    finally:
        probe.close()


def test_libraries_that_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torchvision, faiss = probed(monkeypatch, tmp_path)
    assert torchvision.name == "torchvision"
    assert torchvision.state == "ok"
    assert re.fullmatch(r"\S+, its operators load", torchvision.finding)
    assert faiss.name == "faiss"
    assert faiss.state == "ok"
    assert re.fullmatch(r"\S+, its search on the CPU agrees with torch", faiss.finding)


def test_a_torchvision_without_its_operators_and_no_faiss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    shutil.copytree(
        spec.submodule_search_locations[0], tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so*")
    )
    (tmp_path / "faiss.py").write_text("raise ModuleNotFoundError(\"No module named 'faiss'\", name='faiss')")
    torchvision, faiss = probed(monkeypatch, tmp_path)
    assert torchvision.state == "FAIL"
    assert "nms" in torchvision.finding
    assert "pip install --force-reinstall torch torchvision" in torchvision.remedy
    assert faiss.state == "warn"
    assert "is not installed" in faiss.finding
    assert "pip install 'dcdist[cpu]'" in faiss.remedy


def test_a_faiss_that_crashes_takes_only_the_probe_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "faiss.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    torchvision, faiss = probed(monkeypatch, tmp_path)
    assert torchvision.state == "ok"
    assert (faiss.state, faiss.finding) == ("FAIL", "crashed the process that tried it (SIGSEGV)")
    assert "libraries of different builds" in faiss.remedy


def test_a_library_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)")
    began = time.monotonic()
    torchvision, faiss = probed(monkeypatch, tmp_path, seconds=1)
    assert time.monotonic() - began < 20
    assert (torchvision.state, torchvision.finding) == ("FAIL", "did not end within 1 s")
    assert faiss.state == "FAIL"
    assert faiss.finding == "was not tried, for torchvision ended the process that tries it"


def test_a_library_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    torchvision, _ = probed(monkeypatch, tmp_path)
    assert torchvision.state == "FAIL"
    assert "exit code 1: ImportError: libcudart.so.13: cannot open shared object file" in torchvision.finding


class WrongIndex:
    """A flat index that finds the first others for every row."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def add(self, rows: Any) -> None:
        self.rows = rows

    def search(self, rows: Any, k: int) -> tuple[Any, Any]:
        assert rows.shape[1] == self.num_features
        return np.zeros((len(rows), k), np.float32), np.tile(np.arange(k), (len(rows), 1))


def test_a_faiss_that_finds_other_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(__version__="1.0", IndexFlatL2=WrongIndex))
    check = native.check_faiss("cpu")
    assert check.state == "FAIL"
    assert re.search(r"1.0 does not find torch's neighbours on the CPU: \d+ of 600 differ", check.finding)
    assert "pip install --force-reinstall" in check.remedy


def test_a_faiss_without_gpu_support_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    monkeypatch.delattr(faiss, "GpuIndexFlatL2", raising=False)
    check = native.check_faiss("cuda:0")
    assert check.state == "ok"
    assert "no GPU support (pip install 'dcdist[gpu]' has)" in check.finding
