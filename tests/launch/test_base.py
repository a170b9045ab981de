"""A config that is handed to processes in another folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dcdist.config.load import to_yaml, validate
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError
from dcdist.launch.base import with_absolute_paths
from dcdist.launch.ray import RaySubmission, run_on_ray
from dcdist.launch.slurm import SlurmResources, SlurmSubmission

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


def test_weights_that_processes_on_ray_would_not_find_are_refused() -> None:
    def with_weights(path: str) -> ExperimentConfig:
        given = {"run": {"dir": "runs/one"}, "data": {"root": "images"}, "model": {"initial_weights": path}}
        return validate(given, "a test")

    def submission(path: str) -> RaySubmission:
        return RaySubmission(with_weights(path), address="http://head:8265")

    refused = r"model.initial_weights=w.safetensors is relative.*give the absolute path"
    with pytest.raises(UsageError, match=refused):
        submission("w.safetensors").submit()
    with pytest.raises(UsageError, match=refused):
        run_on_ray(with_weights("w.safetensors"))
    for path in ("/shared/w.safetensors", "s3://bucket/w.safetensors"):
        assert f"initial_weights: {path}" in submission(path).describe()


def test_a_slurm_job_is_given_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "srun", "sinfo"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/bin/sh\necho Submitted batch job 7\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert SlurmSubmission(experiment(**METRICS), SlurmResources()).submit() == "7"
    (handed_over,) = (tmp_path / "runs/one/slurm").glob("config-*.yaml")
    assert handed_over.read_text() == to_yaml(with_absolute_paths(experiment(**METRICS)))
