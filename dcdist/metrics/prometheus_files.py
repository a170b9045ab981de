"""Files by which Prometheus finds a run's metrics: one that names an endpoint, or one for node_exporter.

They are touched in `refresh`, `last_look` and `close` alone, which may hang where a network file system does: their
caller has a thread for that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from dcdist.metrics.prometheus_outlets import LAST_LOOK_SECONDS

logger = logging.getLogger(__name__)

STALE_AFTER_SECONDS = 24 * 3600.0  # of files that nobody refreshes: a killed run's alerts last until then


class DiscoveryFile:
    """Names an endpoint in a folder that Prometheus watches (file_sd_configs).

    The file has the same name for all attempts of a run, and gives its target the run as `instance`: the series of a
    run that was started again elsewhere go on. Files that nobody has touched for a day are removed.

    Args:
        folder: that Prometheus watches; created where it is missing.
        run: its label.
        target: HOST:PORT.
        tls: whether it speaks HTTPS.
    """

    def __init__(self, folder: Path, run: str, target: str, tls: bool) -> None:
        self._path = folder / f"{_file_name(run)}.json"
        labels = {"instance": run, **({"__scheme__": "https"} if tls else {})}
        self._content = json.dumps([{"targets": [target], "labels": labels}]).encode()
        self._is_there = False

    def refresh(self) -> None:
        """Writes the file, then keeps it young; where a newer attempt has written its own, that one stays."""
        if not self._is_there:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            _replace(self._path, self._content)
            self._is_there = True
            return
        try:
            if self._path.read_bytes() == self._content:
                os.utime(self._path)
        except FileNotFoundError:  # somebody took it for stale
            _replace(self._path, self._content)

    def _remove_stale(self) -> None:
        for path in self._path.parent.glob("dcdist-*.json"):
            try:
                if time.time() - path.stat().st_mtime > STALE_AFTER_SECONDS:
                    path.unlink()
            except OSError as error:  # another run was quicker, or it is somebody else's
                logger.info("%s is left: %s", path, error)

    def last_look(self, seconds: float = LAST_LOOK_SECONDS) -> None:
        """Nothing is in the file that should be read once more."""

    def close(self) -> None:
        """Removes the file, unless it is a newer attempt's."""
        try:
            if self._path.read_bytes() == self._content:
                self._path.unlink()
        except FileNotFoundError:
            pass


class TextFile:
    """The metrics as a file for node_exporter's textfile collector, where nothing may listen.

    Args:
        registry: what is written.
        folder: the collector's; created where it is missing.
        run: its label.
    """

    def __init__(self, registry: CollectorRegistry, folder: Path, run: str) -> None:
        self._registry, self._path = registry, folder / f"{_file_name(run)}.prom"

    def refresh(self) -> None:
        """Replaces the file as a whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _replace(self._path, generate_latest(self._registry))

    def last_look(self, seconds: float = LAST_LOOK_SECONDS) -> None:
        """Leaves the last figures there for so long: who reads the file does not say so."""
        self.refresh()
        logger.info("leaving the last figures in %s for %.0f seconds", self._path, seconds)
        time.sleep(seconds)

    def close(self) -> None:
        """Removes the file: its figures would otherwise stay for ever."""
        self._path.unlink(missing_ok=True)


def _file_name(run: str) -> str:
    return f"dcdist-{hashlib.sha256(run.encode()).hexdigest()[:16]}"


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".dcdist-", delete=False) as file:
        file.write(content)
    written = Path(file.name)
    written.chmod(0o644)
    written.replace(path)
