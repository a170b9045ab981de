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
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from dcdist.metrics.prometheus_outlets import LAST_LOOK_SECONDS, REFRESH_EVERY_SECONDS

logger = logging.getLogger(__name__)

_ATTEMPT = "# attempt "
STALE_AFTER_SECONDS = 24 * 3600.0  # of files that nobody refreshes: a killed run's alerts last until then


class DiscoveryFile:
    """Names an endpoint in a folder that Prometheus watches (file_sd_configs).

    The file has the same name for all attempts of a run, and gives its target the run as `instance`: the series of a
    run that was started again elsewhere go on. Files that nobody has touched for a day are removed.

    Args:
        folder: that Prometheus watches; created where it is missing.
        run: its label.
        host: of the endpoint, as others call it.
        port: tells that of the endpoint; None while that is not open.
        tls: whether it speaks HTTPS.
    """

    def __init__(self, folder: Path, run: str, host: str, port: Callable[[], int | None], tls: bool) -> None:
        self._path = folder / f"{_file_name(run)}.json"
        self._host, self._port = host, port
        self._labels = {"instance": run, **({"__scheme__": "https"} if tls else {})}
        self._content = b""
        self._is_there = False

    def refresh(self) -> None:
        """Writes the file, then keeps it young; where a newer attempt has written its own, that one stays."""
        port = self._port()
        if port is None:
            return
        self._content = json.dumps([{"targets": [f"{self._host}:{port}"], "labels": self._labels}]).encode()
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

    Its first line says whose it is: an attempt that hangs, or was superseded, leaves the file of a newer one alone.

    Args:
        registry: what is written.
        folder: the collector's; created where it is missing.
        run: its label.
        attempt: its number.
    """

    def __init__(self, registry: CollectorRegistry, folder: Path, run: str, attempt: int) -> None:
        self._registry, self._path, self._attempt = registry, folder / f"{_file_name(run)}.prom", attempt

    def refresh(self) -> None:
        """Replaces the file as a whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_of_a_newer_attempt():
            _replace(self._path, f"{_ATTEMPT}{self._attempt}\n".encode() + generate_latest(self._registry))

    def _is_of_a_newer_attempt(self) -> bool:
        """One that lives: in a run's folder that was emptied attempts are counted anew."""
        try:
            with self._path.open() as file:
                owner = file.readline().removeprefix(_ATTEMPT).strip()
            age = time.time() - self._path.stat().st_mtime
        except FileNotFoundError:
            return False
        return owner.isdigit() and int(owner) > self._attempt and age < 4 * REFRESH_EVERY_SECONDS

    def last_look(self, seconds: float = LAST_LOOK_SECONDS) -> None:
        """Leaves the last figures there for so long: who reads the file does not say so."""
        self.refresh()
        logger.info("leaving the last figures in %s for %.0f seconds", self._path, seconds)
        time.sleep(seconds)

    def close(self) -> None:
        """Removes the file: its figures would otherwise stay for ever."""
        if not self._is_of_a_newer_attempt():
            self._path.unlink(missing_ok=True)


def _file_name(run: str) -> str:
    return f"dcdist-{hashlib.sha256(run.encode()).hexdigest()[:16]}"


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".dcdist-", delete=False) as file:
        written = Path(file.name)
        try:
            file.write(content)
            file.flush()
            written.chmod(0o644)
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)  # else one more at each try, on a disk that is full already
            raise
