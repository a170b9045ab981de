"""Files by which a run is found: one that names its address, one for node_exporter."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from dcdist.metrics.prometheus_files import STALE_AFTER_SECONDS, DiscoveryFile, TextFile


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("dcdist_test", "Always 1", registry=made).set(1)
    return made


def test_a_discovery_file_names_the_target_and_is_gone_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "discovery"
    first = DiscoveryFile(folder, "/runs/a", "n1", lambda: 9400, tls=False)
    second = DiscoveryFile(folder, "/runs/b", "n2", lambda: 9401, tls=True)
    first.refresh()
    second.refresh()
    contents = sorted((json.loads(path.read_bytes()) for path in folder.iterdir()), key=str)
    assert contents == [
        [{"targets": ["n1:9400"], "labels": {"instance": "/runs/a"}}],
        [{"targets": ["n2:9401"], "labels": {"instance": "/runs/b", "__scheme__": "https"}}],
    ]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir()), "Prometheus may read it"
    first.close()
    assert len(list(folder.iterdir())) == 1
    second.close()
    assert list(folder.iterdir()) == []


def test_the_next_attempt_takes_the_file_over(tmp_path: Path) -> None:
    killed = DiscoveryFile(tmp_path, "/runs/a", "n1", lambda: 9400, tls=False)
    killed.refresh()
    resumed = DiscoveryFile(tmp_path, "/runs/a", "n2", lambda: 9401, tls=False)
    resumed.refresh()
    (path,) = tmp_path.iterdir()
    killed.refresh()
    killed.close()
    assert json.loads(path.read_bytes())[0]["targets"] == ["n2:9401"], "a straggler leaves it alone"
    resumed.close()
    assert not path.exists()


def test_stale_files_are_removed_and_ours_stay_young(tmp_path: Path) -> None:
    abandoned = tmp_path / "dcdist-abandoned.json"
    foreign = tmp_path / "other.json"
    young = tmp_path / "dcdist-young.json"
    for path in (abandoned, foreign, young):
        path.write_text("[]")
    long_ago = time.time() - STALE_AFTER_SECONDS - 60
    os.utime(abandoned, (long_ago, long_ago))
    os.utime(foreign, (long_ago, long_ago))
    file = DiscoveryFile(tmp_path, "/runs/a", "n1", lambda: 9400, tls=False)
    file.refresh()
    (own,) = set(tmp_path.iterdir()) - {abandoned, foreign, young}
    assert not abandoned.exists()
    assert foreign.exists()
    assert young.exists()
    os.utime(own, (long_ago, long_ago))
    file.refresh()
    assert time.time() - own.stat().st_mtime < 60
    own.unlink()  # somebody took it for stale
    file.refresh()
    assert own.exists()
    file.close()


def test_a_text_file_is_replaced_as_a_whole_and_gone_at_the_end(registry: CollectorRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "collector"
    file, other = TextFile(registry, folder, "/runs/a", 1), TextFile(registry, folder, "/runs/b", 1)
    file.refresh()
    (path,) = folder.glob("dcdist-*.prom")
    assert "dcdist_test 1.0" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644, "node_exporter may read it"
    Gauge("dcdist_later", "Comes later", registry=registry).set(2)
    inode = path.stat().st_ino
    file.refresh()
    other.refresh()
    assert "dcdist_later 2.0" in path.read_text()
    assert path.stat().st_ino != inode
    start = time.monotonic()
    file.last_look(0.3)
    assert time.monotonic() - start >= 0.3
    file.close()
    (left,) = folder.iterdir()
    assert left != path, "another run's file is none of its business"


def test_while_no_port_is_open_none_is_named(tmp_path: Path) -> None:
    ports: list[int | None] = [None, None, 9400]
    file = DiscoveryFile(tmp_path, "/runs/a", "n1", lambda: ports.pop(0), tls=False)
    file.refresh()
    file.close()
    file.refresh()
    assert list(tmp_path.iterdir()) == []
    file.refresh()
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_bytes())[0]["targets"] == ["n1:9400"]


def test_a_straggler_leaves_the_text_file_of_a_newer_attempt_alone(registry: CollectorRegistry, tmp_path: Path) -> None:
    old, new = (TextFile(registry, tmp_path, "/runs/a", attempt) for attempt in (9, 10))
    old.refresh()
    new.refresh()
    (path,) = tmp_path.iterdir()
    content = path.read_text()
    assert content.startswith("# attempt 10\n")
    old.refresh()
    old.close()
    assert path.read_text() == content
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))  # the run's folder was emptied, and attempts are counted anew
    old.refresh()
    assert path.read_text().startswith("# attempt 9\n")
    old.close()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing(
    registry: CollectorRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for file in (TextFile(registry, tmp_path, "/runs/a", 1), DiscoveryFile(tmp_path, "/r", "n1", lambda: 1, False)):
        with pytest.raises(OSError, match="No space left"):
            file.refresh()
    assert list(tmp_path.iterdir()) == []
