"""What keeps the outlets: failures are warnings, and a file system that hangs holds up nobody."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dcdist.metrics import prometheus_outlets
from dcdist.metrics.prometheus_files import DiscoveryFile, TextFile
from dcdist.metrics.prometheus_outlets import KeptOutlets


class Hanging:
    """As a network file system whose server is gone."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def refresh(self) -> None:
        self.released.wait(60)

    def last_look(self) -> None: ...

    def close(self) -> None: ...


def test_a_folder_that_hangs_holds_up_neither_start_nor_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_outlets, "_CLOSE_SECONDS", 0.5)
    hanging = Hanging()
    start = time.monotonic()
    kept = KeptOutlets([hanging])
    kept.close(last_look=False)
    assert time.monotonic() - start < 10
    hanging.released.set()


def test_a_folder_that_cannot_be_written_is_one_warning_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prometheus_outlets, "REFRESH_EVERY_SECONDS", 0.02)
    folder = tmp_path / "folder"
    folder.write_text("a file is where the folder should be")
    outlets = [
        DiscoveryFile(folder, "/runs/a", "n1", lambda: 9400, tls=False),
        TextFile(CollectorRegistry(), folder, "/runs/a", 1),
    ]
    with caplog.at_level(logging.WARNING):
        kept = KeptOutlets(outlets)
        time.sleep(0.3)
        folder.unlink()
        deadline = time.monotonic() + 20
        while not folder.is_dir() or len(list(folder.glob("dcdist-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kept.close(last_look=False)
    assert [message.split(" fails")[0] for message in caplog.messages] == [
        "metrics for Prometheus: DiscoveryFile",
        "metrics for Prometheus: TextFile",
    ]
    assert list(folder.iterdir()) == []
