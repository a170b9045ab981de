"""Fixtures that several parts share: a real S3 server process, the shared real images, no state kept between tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from xdist.scheduler import LoadFileScheduling

from dcdist.data.loader_processes import start_server
from tests.availability import unavailable

torch.set_num_threads(1)

# Processes of the tests are forks of a server that has imported everything already. Started here, for what the product
# itself would start imports less. torch._dynamo is what the first optimizer imports, for seconds.
start_server(["dcdist.cli", "dcdist.worker", "dcdist.config.load", "torch._dynamo"])

CLUSTERS = "tests/cluster/"

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


class _FilesAndClusters(LoadFileScheduling):
    """A file's tests are the work of one process, and so are all of the clusters, which mostly wait."""

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if nodeid.startswith(CLUSTERS) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesAndClusters:
    return _FilesAndClusters(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The clusters come first, for they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTERS))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout."""
    if not SHARED_DATA.is_dir():
        unavailable(f"the folder of real images {SHARED_DATA} is not there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def _moto_server() -> Iterator[str]:
    """A moto server process for the whole session: its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"moto.server ended with exit code {process.returncode}"
                assert time.monotonic() < deadline, "moto.server did not answer within 60 seconds"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def s3_server(_moto_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty S3 server with a bucket named "bucket".

    The environment is set so that plain "s3://bucket/..." works through fsspec, in this process and in those it starts.
    """
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", _moto_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    request = urllib.request.Request(f"{_moto_server}/moto-api/reset", method="POST")
    urllib.request.urlopen(request, timeout=10).close()
    fsspec.filesystem("s3").mkdir("bucket")
    return _moto_server


@pytest.fixture(autouse=True)
def _no_cached_filesystems() -> Iterator[None]:
    """Forgets the filesystem objects, listings and files of memory:// that fsspec keeps for the whole process."""
    yield
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    if "fsspec.implementations.memory" in sys.modules:
        memory = sys.modules["fsspec.implementations.memory"].MemoryFileSystem
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        memory.clear_instance_cache()
