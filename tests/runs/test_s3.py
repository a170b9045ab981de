"""A run directory on a real S3 server, which fails and comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.runs.conftest import experiment
from tests.runs.faulty_proxy import FaultyProxy
from tests.runs.processes import assert_same_state, final_state, run, start_run, write_config

URL = "s3://bucket/runs/one"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def fetched_state(tmp_path: Path) -> dict[str, Any]:
    fsspec.filesystem("s3", skip_instance_cache=True).get("bucket/runs/one", str(tmp_path / "copy"), recursive=True)
    return final_state(tmp_path / "copy")


@pytest.fixture
def s3_config(s3_server: str, tmp_path: Path, digits_folder: Path) -> Path:
    assert s3_server
    return write_config(tmp_path / "config.yaml", experiment(digits_folder, URL))


def test_killed_and_resumed(s3_config: Path, undisturbed: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    for point in ("kmeans:iteration:8", "checkpoint:commit:4"):
        assert run(s3_config, DCDIST_FAULT=point, **environment()) == [-signal.SIGKILL]
    assert run(s3_config, DCDIST_FAULT="train:step:3:*:SIGTERM", **environment()) == [75]
    assert run(s3_config, **environment()) == [0]
    assert_same_state(fetched_state(tmp_path), undisturbed[1])
    written = {name.split("/")[3] for name in fsspec.filesystem("s3", skip_instance_cache=True).find("bucket/runs/one")}
    assert {"config.yaml", "keys.parquet", "attempts", "metrics", "assignments", "checkpoints", "logs"} <= written


def test_a_server_that_goes_away_and_comes_back(
    s3_server: str, s3_config: Path, undisturbed: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    proxy = FaultyProxy(s3_server)
    there = {**environment(), "AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": proxy.url}
    running = start_run(s3_config, environment={**there, "DCDIST_FAULT": "train:step:9:*:SIGSTOP"})
    running.wait_until_stopped()
    proxy.close()
    running.signal(signal.SIGCONT)
    assert running.wait() == [1]
    assert "Could not connect to the endpoint" in running.errors()
    assert "Traceback" not in running.errors()
    assert "the newest good checkpoint is step-00000008-train.0001" in running.errors()
    proxy.open()
    assert run(s3_config, **there) == [0]
    proxy.close()
    assert_same_state(fetched_state(tmp_path), undisturbed[1])
