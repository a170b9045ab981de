"""A real Prometheus on this machine, with the project's own scrape config and rules, only in a hurry."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.availability import unavailable

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"


def is_installed() -> bool:
    return all(shutil.which(command) for command in ("prometheus", "promtool"))


@contextlib.contextmanager
def watching(folder: Path, discovery: Path, *others: Mapping[str, Any]) -> Iterator[Prometheus]:
    """A Prometheus with its files in `folder`, a new one, until the end of the block."""
    if not is_installed():
        unavailable("prometheus and promtool are not installed")
    folder.mkdir()
    prometheus = Prometheus(folder, discovery, others=others)
    try:
        yield prometheus
    finally:
        prometheus.stop()


class Prometheus:
    """Scrapes each second what the files in `discovery` name, and evaluates the project's rules each second.

    Args:
        folder: for its config, data and log.
        discovery: folder of files, as metrics.prometheus_discovery has it.
        data: a finished TSDB to serve instead of a new one.
        scrape: what else the scrape config has: tls_config, basic_auth.
        others: further scrape configs.
    """

    def __init__(
        self,
        folder: Path,
        discovery: Path,
        data: Path | None = None,
        scrape: Mapping[str, Any] | None = None,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
        (own,) = (job for job in config["scrape_configs"] if job["job_name"] == "dcdist")
        own["file_sd_configs"] = [{"files": [f"{discovery}/dcdist-*.json"], "refresh_interval": "1s"}]
        own |= scrape or {}
        config["scrape_configs"] = [own, *others]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={data or folder / 'data'}",
                    "--storage.tsdb.retention.time=3650d",
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """[{"metric": labels, "value": [time, text]}] of an expression now, or at a time (unix seconds)."""
        return self._get("query", query=expr, **({} if at is None else {"time": f"{at:.3f}"}))["result"]

    def query_range(self, expr: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """[{"metric": labels, "values": [[time, text], ...]}] of an expression."""
        return self._get("query_range", query=expr, start=f"{start:.3f}", end=f"{end:.3f}", step=str(step))["result"]

    def series(self, selector: str, start: float, end: float) -> list[dict[str, str]]:
        """The labels of all series that were there."""
        return self._get("series", **{"match[]": selector, "start": f"{start:.3f}", "end": f"{end:.3f}"})

    def wait_for(self, expr: str, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Returns what an expression has as soon as it has something."""
        deadline = time.monotonic() + seconds
        while not (result := self.query(expr)):
            assert time.monotonic() < deadline, f"{expr} has had nothing for {seconds} s"
            time.sleep(0.5)
        return result

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                content = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert content["status"] == "success", content
        return content["data"]
