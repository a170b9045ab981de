"""A config that is handed to processes in another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdist.config.load import to_yaml, validate
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError
from dcdist.launch.base import with_absolute_paths
from dcdist.launch.ray import RaySubmission

METRICS = {
    "prometheus_port": 0,
    "prometheus_discovery": "targets",
    "prometheus_textfile": "node/run.prom",
    "prometheus_certificate": "tls/certificate.pem",
    "prometheus_private_key": "tls/key.pem",
    "prometheus_credentials": "password",
}


def experiment(**metrics: object) -> ExperimentConfig:
    given = {"run": {"dir": "runs/one"}, "data": {"root": "images", "cache_directory": "cache"}, "metrics": metrics}
    return validate(given, "a test")


def test_every_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(experiment(**METRICS))
    assert config.run.dir == str(tmp_path / "runs/one")
    assert (config.data.root, config.data.cache_directory) == (str(tmp_path / "images"), str(tmp_path / "cache"))
    for name, path in METRICS.items():
        assert getattr(config.metrics, name) == (str(tmp_path / path) if isinstance(path, str) else path)
    submitted = RaySubmission(experiment(**METRICS), address="http://head:8265").describe()
    assert submitted.endswith(to_yaml(config))


def test_what_is_absolute_a_url_or_not_given_stays() -> None:
    config = experiment(prometheus_port=0, prometheus_credentials="/etc/password")
    there = config.model_copy(update={"data": config.data.model_copy(update={"root": "s3://bucket/images"})})
    found = with_absolute_paths(there)
    assert found.data.root == "s3://bucket/images"
    assert found.metrics == config.metrics


def test_weights_that_a_ray_job_would_not_find_are_refused() -> None:
    def submission(path: str) -> RaySubmission:
        given = {"run": {"dir": "runs/one"}, "data": {"root": "images"}, "model": {"initial_weights": path}}
        config = validate(given, "a test")
        return RaySubmission(config, address="http://head:8265")

    with pytest.raises(UsageError, match=r"model.initial_weights=w.safetensors is relative.*give the absolute path"):
        submission("w.safetensors").submit()
    for path in ("/shared/w.safetensors", "s3://bucket/w.safetensors"):
        assert f"initial_weights: {path}" in submission(path).describe()
