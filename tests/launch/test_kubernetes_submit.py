"""`dcdist submit k8s`: what is rendered, applied and refused, without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcdist.config.load import load_config, to_yaml
from dcdist.errors import UsageError
from dcdist.launch.kubernetes import KubernetesSubmission, render, submit
from tests.availability import unavailable
from tests.launch.kubernetes_manifests import (
    CONFIG,
    K8S,
    SUBMISSIONS,
    documents_of,
    of_kind,
    pods_of,
    selects,
    trainer_of,
    values_of,
    workload_of,
)


def submission(**changes: Any) -> KubernetesSubmission:
    return KubernetesSubmission(**{"config": CONFIG, "base": K8S / "job", "name": "digits", **changes})


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_submission_carries_its_resolved_config(name: str) -> None:
    config = of_kind(documents_of(name), "ConfigMap")["data"]
    assert config == {"config.yaml": to_yaml(load_config(CONFIG, SUBMISSIONS[name].overrides))}


@pytest.mark.parametrize(("base", "kind"), [("job", "Job"), ("rayjob", "RayJob")])
def test_a_submission_says_name_place_image_and_sizes(base: str, kind: str) -> None:
    workload = of_kind(documents_of(f"submitted-{base}"), kind)
    assert workload["metadata"]["name"] == "digits"
    assert workload["metadata"]["namespace"] == "vision"
    for pod in pods_of(workload).values():
        assert [container["image"] for container in pod["spec"]["containers"]] == ["images.example/dcdist:1"]
    assert trainer_of(workload)["resources"] == {
        "requests": {"cpu": "32", "memory": "128Gi"},
        "limits": {"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": "4"},
    }
    if kind == "Job":
        assert workload["spec"]["completions"] == 3
    else:
        assert workload["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
        assert values_of(workload)["launch.num_processes"] == "12"


def test_what_is_not_given_stays_as_the_base_has_it() -> None:
    documents, base = list(yaml.safe_load_all(text_of_submission(name="dcdist"))), documents_of("job")
    assert of_kind(documents, "ConfigMap").pop("data") != of_kind(base, "ConfigMap").pop("data")
    hashes = re.compile(r"dcdist-config-\w+")
    assert hashes.sub("", json.dumps(documents)) == hashes.sub("", json.dumps(base))


def text_of_submission(**changes: Any) -> str:
    if shutil.which("kubectl") is None:
        unavailable("kubectl is not installed")
    return render(submission(**changes))


@pytest.mark.parametrize("base", ["job", "rayjob"])
def test_two_submissions_have_nothing_in_common(base: str) -> None:
    first, second = (
        list(yaml.safe_load_all(text_of_submission(name=name, base=K8S / base))) for name in ("one", "two")
    )
    names = [{(d["kind"], d["metadata"]["name"]) for d in documents} for documents in (first, second)]
    assert len(names[0]) == len(first)
    assert not names[0] & names[1]
    for document in first:
        if document["kind"] in ("Service", "PodDisruptionBudget"):
            selector = document["spec"]["selector"]
            for pod in pods_of(workload_of(second)).values():
                assert not selects(selector.get("matchLabels", selector), pod)


def test_an_override_of_what_the_command_says_goes_into_the_command() -> None:
    overrides = ("launch.threads_per_process=3", "metrics.progress=false", "run.dir=/runs/a b")
    job = of_kind(list(yaml.safe_load_all(text_of_submission(overrides=overrides, cpus_per_node=16))), "Job")
    assert values_of(job)["launch.threads_per_process"] == "3"
    assert not {"run.dir", "metrics.progress"} & set(values_of(job))


def test_an_override_in_a_shell_command_is_quoted_and_in_a_job_no_variable() -> None:
    overrides = ("metrics.prometheus_address=$(id) x",)
    rayjob = of_kind(list(yaml.safe_load_all(text_of_submission(overrides=overrides, base=K8S / "rayjob"))), "RayJob")
    assert " 'metrics.prometheus_address=$(id) x' || test " in rayjob["spec"]["entrypoint"]
    job = of_kind(list(yaml.safe_load_all(text_of_submission(overrides=overrides))), "Job")
    assert "metrics.prometheus_address=$$(id) x" in trainer_of(job)["args"]


def test_an_overlay_of_ones_own_is_a_base(tmp_path: Path) -> None:
    base = os.path.relpath(K8S / "job", tmp_path)
    patch = [{"op": "add", "path": "/spec/template/spec/nodeSelector", "value": {"disk": "fast"}}]
    own = {
        "resources": [base],
        "namePrefix": "team-",
        "patches": [{"target": {"kind": "Job"}, "patch": json.dumps(patch)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    documents = list(yaml.safe_load_all(text_of_submission(base=tmp_path, nodes=5)))
    job = of_kind(documents, "Job")
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"disk": "fast"}
    assert job["spec"]["template"]["spec"]["subdomain"] == of_kind(documents, "Service")["metadata"]["name"] == "digits"
    config = of_kind(documents, "ConfigMap")
    assert config["metadata"]["name"].startswith("digits-config-")
    assert config["data"]["config.yaml"] == to_yaml(load_config(CONFIG))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "--nodes 0: expected a whole number from 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node -1: expected a whole number from 0"),
        ({"cpus_per_node": 0}, "--cpus-per-node 0: expected a whole number from 1"),
        ({"memory": "64 GB"}, "--memory 64 GB: expected a Kubernetes quantity, as 32Gi"),
        ({"name": "Digits"}, "--name Digits: expected at most 61 of a-z, 0-9 and -"),
        ({"name": "d" * 61, "nodes": 11}, "expected at most 60 of"),
        ({"name": "d" * 48, "base": K8S / "rayjob"}, "expected at most 47 of"),
        ({"namespace": "my_team"}, "--namespace my_team: expected at most 63 of"),
        ({"base": K8S}, f"--base {K8S} holds no kustomization.yaml; expected a folder like k8s/job"),
        (
            {"overrides": ("run.dir=runs/x",)},
            r"run.dir=runs/x would end with its pod; .*\(/runs/...\): override run.dir",
        ),
        ({"overrides": ("run.dir=/tmp/x",)}, "run.dir=/tmp/x would end with its pod"),
        ({"overrides": ("run.dir=/runsx",)}, "run.dir=/runsx would end with its pod"),
        ({"overrides": ("run.dir=file:///cache/x",)}, "run.dir=file:///cache/x would end with its pod"),
        ({"base": K8S / "overlays" / "rayjob-s3"}, r"run.dir=/runs/digits would end .*\(no volume of this base\)"),
        ({"overrides": ("data.root=data/x",)}, "data.root=data/x is a folder of this machine; expected a URL"),
        (
            {"overrides": ("data.cache_directory=cache", "metrics.prometheus_textfile=node")},
            "data.cache_directory=cache, metrics.prometheus_textfile=node would not be found; expected absolute paths",
        ),
        ({"overrides": ("model.initial_weights=w.pth",)}, "model.initial_weights=w.pth is relative.*give the absolute"),
        ({"overrides": ("train.num_epoch=3",)}, "unknown key train.num_epoch; did you mean train.num_epochs"),
    ],
)
def test_a_submission_that_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        text_of_submission(**changes)
    assert "\n" not in str(error.value)


def test_a_base_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("configMapGenerator: [{name: a, literals: [b=c]}]")
    with pytest.raises(UsageError, match=r"renders ConfigMap; expected one Job or one RayJob"):
        text_of_submission(base=tmp_path)


def test_what_kustomize_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]")
    with pytest.raises(
        UsageError, match=r"kubectl kustomize ends with exit code 1: accumulating .*missing.yaml"
    ) as error:
        text_of_submission(base=tmp_path)
    assert "\n" not in str(error.value)


def test_without_kubectl_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="kubectl is not on PATH: install it"):
        render(submission())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl whose `apply` keeps its input in FOLDER/applied and answers with FOLDER/apply; else the real one."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        unavailable("kubectl is not installed")
    script = f"""#!/bin/sh
if [ "$1" != apply ]; then exec {kubectl} "$@"; fi
test "$*" = "apply -f -" && cat > {tmp_path}/applied && . {tmp_path}/apply
"""
    (tmp_path / "kubectl").write_text(script)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(("base", "resource"), [("job", "job.batch/digits"), ("rayjob", "rayjob.ray.io/digits")])
def test_submitting_applies_what_is_rendered(cluster: Path, base: str, resource: str) -> None:
    (cluster / "apply").write_text(f"echo configmap/digits-config-abc created; echo {resource} created")
    given = submission(base=K8S / base, nodes=2)
    assert submit(given) == resource
    assert (cluster / "applied").read_text() == render(given)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo job.batch/digits unchanged", "--name digits: there is such a Job or RayJob already"),
        ("echo job.batch/digits configured", "nothing was started. Delete it"),
        ("echo 'The Job \"digits\" is invalid: spec.template: field is immutable' >&2; exit 1", "or give another name"),
        (
            "printf 'error: no\\n  connection\\n' >&2; exit 1",
            "kubectl apply ends with exit code 1: error: no connection",
        ),
        ("echo service/digits created", "does not say that it created digits: service/digits created"),
    ],
)
def test_what_was_not_started_is_an_error(cluster: Path, answer: str, message: str) -> None:
    (cluster / "apply").write_text(answer)
    with pytest.raises(UsageError, match=message) as error:
        submit(submission())
    assert "\n" not in str(error.value)
