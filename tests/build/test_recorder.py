"""Where /metrics is served and what others call it."""

from __future__ import annotations

import json
import logging
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dcdist.build.recorder import build_recorder, reachable_name
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError
from dcdist.run_directory import RunDirectory
from tests.methods.small_methods import SMALL

LOCAL, RAY, SLURM = {"name": "local"}, {"name": "ray", "job": "r"}, {"name": "slurm", "job": "4711"}


def target_of(tmp_path: Path, launcher: dict[str, str], **metrics: Any) -> str:
    """What the discovery file of a started recorder names."""
    folder = tmp_path / "discovery"
    values = {"prometheus_port": 0, "prometheus_discovery": str(folder), "progress": False, "tensorboard": False}
    config = ExperimentConfig.model_validate({**SMALL, "metrics": {**values, **metrics}})
    run = RunDirectory(str(tmp_path / "run"))
    recorder = build_recorder(config, run, run.begin_attempt({}).number, 0.0, launcher)
    try:
        deadline = time.monotonic() + 30
        while not (files := list(folder.glob("dcdist-*.json"))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (entry,) = json.loads(files[0].read_bytes())
        assert entry["labels"]["instance"] == str(tmp_path / "run")
        target: str = entry["targets"][0]
        host, _, port = target.rpartition(":")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert f'run="{tmp_path / "run"}"' in answer.read().decode()
        return host
    finally:
        recorder.close()


def test_of_a_run_that_was_started_here_nobody_else_can_read(tmp_path: Path) -> None:
    assert target_of(tmp_path, LOCAL) == "127.0.0.1"


def test_a_job_answers_on_all_interfaces_under_an_address_that_others_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    own = reachable_name("0.0.0.0")
    assert target_of(tmp_path, RAY) == own
    assert target_of(tmp_path, SLURM) == "127.0.0.1", "a shell of salloc is on a login node"
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert target_of(tmp_path, SLURM) == own
    assert target_of(tmp_path, LOCAL, prometheus_address="0.0.0.0") == own
    assert target_of(tmp_path, RAY, prometheus_host="n1.cluster") == "n1.cluster"


def test_the_name_is_no_loopback_address_where_there_is_another() -> None:
    name = reachable_name("0.0.0.0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            assert name == socket.gethostname()
        else:
            assert name == probe.getsockname()[0]
    assert reachable_name("10.0.0.7") == "10.0.0.7"
    assert reachable_name("fd00::7") == reachable_name("[fd00::7]") == "[fd00::7]"


def test_a_certificate_that_is_gone_ends_the_first_start_and_no_later_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = {"prometheus_port": 0, "prometheus_certificate": str(tmp_path / "gone.pem"), "progress": False}
    config = ExperimentConfig.model_validate({**SMALL, "metrics": metrics})
    run = RunDirectory(str(tmp_path / "run"))
    run.begin_attempt({})
    with pytest.raises(UsageError, match=r"gone\.pem cannot be used"):
        build_recorder(config, run, 1, 0.0, LOCAL)
    with caplog.at_level(logging.WARNING):
        build_recorder(config, run, 2, 0.0, LOCAL).close()
    assert caplog.messages[0].startswith(
        "metrics for Prometheus: Endpoint fails for now: metrics.prometheus_certificate="
    )


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"prometheus_discovery": "d"}, "metrics.prometheus_discovery is given without metrics.prometheus_port"),
        ({"prometheus_credentials": "c"}, "metrics.prometheus_credentials is given without metrics.prometheus_port"),
        (
            {"prometheus_port": 0, "prometheus_private_key": "k"},
            "metrics.prometheus_private_key is given without metrics.prometheus_certificate",
        ),
    ],
)
def test_what_would_be_in_vain_is_refused(metrics: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentConfig.model_validate({**SMALL, "metrics": metrics})
