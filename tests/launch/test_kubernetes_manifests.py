"""The manifests: what kubectl renders, without a cluster.

rendered/ holds what it should be. To write it anew, and then read the difference:
DCDIST_REGENERATE=1 .venv/bin/pytest tests/launch/test_kubernetes_manifests.py -k kept
"""

from __future__ import annotations

import copy
import json
import os
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dcdist.config.load import load_config
from tests.availability import unavailable
from tests.launch.kubernetes_manifests import (
    CONFIG,
    EVERYTHING,
    JOBS,
    K8S,
    RAY,
    RENDERED,
    ROOT,
    SUBMISSIONS,
    Document,
    command_of,
    documents_of,
    environment_of,
    of_kind,
    pods_of,
    selects,
    text_of,
    trainer_of,
    values_of,
    workload_of,
)

SCHEMAS = ROOT.parent / "shared" / "schemas"
KUBERNETES_VERSIONS = ("1.31", "1.37")  # the oldest that k8s/README.md names, and the newest that is known here


# What is rendered, as a whole


@pytest.mark.parametrize("name", EVERYTHING)
def test_rendered_as_kept(name: str) -> None:
    text = text_of(name)
    if name in SUBMISSIONS:  # the resolved config has a test of its own, and a key more must not change these files
        text = re.sub(r"  config\.yaml: \|\n(    .*\n)+", "  config.yaml: THE RESOLVED CONFIG\n", text)
        text = re.sub(r"-config-[a-z0-9]{10}$", "-config-HASH", text, flags=re.MULTILINE)
    kept = RENDERED / f"{name}.yaml"
    if os.environ.get("DCDIST_REGENERATE"):
        kept.write_text(text)
    assert text == kept.read_text()


def test_every_kept_file_is_compared() -> None:
    assert {path.stem for path in RENDERED.iterdir()} == set(EVERYTHING)


def strictly_valid(document: Document) -> None:
    """Raises where a document does not fit the schema of its kind; a field that the schema lacks does not fit."""
    if document["kind"] != "RayJob":
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
        return
    path = SCHEMAS / "ray.io_rayjobs.json"
    if not path.is_file():
        unavailable(f"the schema {path} is not there")
    version = document["apiVersion"].removeprefix("ray.io/")
    jsonschema.validate(document, closed(json.loads(path.read_text())["versions"][version]))
    for pod in pods_of(document).values():
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        strictly_valid(template)


def closed(schema: Any) -> Any:
    """A CRD's schema that takes no other fields than those that it names, at any depth."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_document_is_valid(name: str) -> None:
    documents = documents_of(name)
    assert len(documents) >= 4
    for document in documents:
        strictly_valid(document)


def test_the_claim_for_runs_is_valid_and_for_several_machines() -> None:
    claim = yaml.safe_load((K8S / "runs-claim.yaml").read_text())
    strictly_valid(claim)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("job", "spec", "podReplacementPolicies"),
        ("job", "spec.template.spec", "terminationGracePeriod"),
        ("job", "spec.template.spec.containers.0.securityContext", "readOnlyRootFileSystem"),
        ("rayjob", "spec", "shutdownAfterJobFinish"),
        ("rayjob", "spec.rayClusterSpec.authOptions", "modes"),
        ("rayjob", "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.lifecycle", "prestop"),
    ],
)
def test_a_misspelt_field_is_not_valid(name: str, path: str, field: str) -> None:
    workload = workload_of(documents_of(name))
    place: Any = workload
    for part in path.split("."):
        place = place[int(part)] if part.isdigit() else place[part]
    place[field] = place.get(next(iter(place)))
    with pytest.raises(jsonschema.ValidationError, match=field):
        strictly_valid(workload)


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_is_referred_to_is_there(name: str) -> None:
    documents = documents_of(name)
    workload = workload_of(documents)
    claim = yaml.safe_load((K8S / "runs-claim.yaml").read_text())["metadata"]["name"]
    configs = [document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"]
    for pod in pods_of(workload).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        (container,) = pod["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert [volumes["config"]["configMap"]["name"]] == configs
        if name == "rayjob-s3":
            assert "runs" not in volumes
            assert container["envFrom"] == [{"secretRef": {"name": "dcdist-s3"}}]
        else:
            assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim
    for document in documents:
        if document["kind"] in ("Service", "PodDisruptionBudget"):
            selector = document["spec"]["selector"]
            chosen = [
                role for role, pod in pods_of(workload).items() if selects(selector.get("matchLabels", selector), pod)
            ]
            assert len(chosen) == 1
            assert document["metadata"].get("labels", {}).get("app.kubernetes.io/component", chosen[0]) == chosen[0]


# Security


def security_problems(pod: Document) -> list[str]:
    """What keeps a pod from running without privileges on a read-only root (stricter than the restricted standard)."""
    spec = pod["spec"]
    whole = spec.get("securityContext", {})
    problems = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    problems += [] if whole.get("runAsNonRoot") is True else ["runAsNonRoot"]
    problems += [key for key in ("runAsUser", "runAsGroup", "fsGroup") if whole.get(key) != 10001]
    problems += [] if whole.get("seccompProfile") == {"type": "RuntimeDefault"} else ["seccompProfile"]
    problems += [] if spec.get("automountServiceAccountToken") is False else ["automountServiceAccountToken"]
    problems += [f"volume {volume['name']}" for volume in spec["volumes"] if "hostPath" in volume]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        expected = {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        problems += [f"{container['name']}: {key}" for key, value in expected.items() if own.get(key) != value]
        overridden = {"runAsUser", "runAsNonRoot", "seccompProfile", "privileged"} & set(own)
        problems += [f"{container['name']}: {key}" for key in overridden]
    return problems


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_pod_has_privileges(name: str) -> None:
    for role, pod in pods_of(workload_of(documents_of(name))).items():
        assert security_problems(pod) == [], role


def test_a_container_with_privileges_is_found() -> None:
    pod = pods_of(workload_of(documents_of("job")))["worker"]
    assert security_problems({"spec": pod["spec"] | {"initContainers": [{"name": "prepare"}]}}) == [
        "prepare: readOnlyRootFilesystem",
        "prepare: allowPrivilegeEscalation",
        "prepare: capabilities",
    ]
    changed = copy.deepcopy(pod)
    changed["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0
    del changed["spec"]["securityContext"]["seccompProfile"]
    assert security_problems(changed) == ["seccompProfile", "dcdist: runAsUser"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_beside_the_run_only_volumes_of_the_pod_are_written_to(name: str) -> None:
    for pod in pods_of(workload_of(documents_of(name))).values():
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        for folder in ("/tmp", environment["HOME"], environment["DCDIST_CACHE"]):
            assert mounts[folder]["emptyDir"] == {}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert "configMap" in mounts["/etc/dcdist"]


def test_no_manifest_turns_authentication_off() -> None:
    texts = {path: path.read_text() for path in [*K8S.rglob("*"), *RENDERED.iterdir()] if path.is_file()}
    assert len(texts) > 15
    for path, text in texts.items():
        assert not re.search(r"RAY_AUTH_MODE|mode: *[\"']?disabled", text), path


@pytest.mark.parametrize("name", RAY)
def test_ray_asks_for_a_token(name: str) -> None:
    cluster = of_kind(documents_of(name), "RayJob")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_image_fits_the_manifests() -> None:
    dockerfile = (K8S / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)[-1] == "10001:10001"
    assert {"tini", "procps", "wget"} <= set(re.findall(r"[a-z]+", re.search(r"apt-get install.*", dockerfile)[0]))  # type: ignore[index]
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for word in line.split()}
    let_in = set(re.findall(r"^!(\S+)", (K8S / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    (ray,) = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert of_kind(documents_of("rayjob"), "RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == ray
    assert load_config(CONFIG).data.root in dockerfile


# Places


@pytest.mark.parametrize("name", JOBS)
def test_pods_meet_at_pod_0(name: str) -> None:
    documents = documents_of(name)
    job, service = of_kind(documents, "Job"), of_kind(documents, "Service")
    job_name, pod = job["metadata"]["name"], job["spec"]["template"]
    labels = pod["metadata"]["labels"] | {"batch.kubernetes.io/job-name": job_name}  # the Job controller's
    environment = environment_of(trainer_of(job), labels)
    # The pod of index 0 has the host name JOB-0, in the domain of the Service that it names.
    assert environment["MASTER_ADDR"] == f"{job_name}-0.{service['metadata']['name']}"
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert selects(service["spec"]["selector"], pod)
    assert int(environment["MASTER_PORT"]) in [port["port"] for port in service["spec"]["ports"]]
    assert environment["NODE_RANK"] == "<batch.kubernetes.io/job-completion-index>"
    assert int(environment["NUM_NODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert of_kind(documents, "PodDisruptionBudget")["spec"]["minAvailable"] == job["spec"]["completions"] - 1


@pytest.mark.parametrize("name", RAY)
def test_processes_of_a_rayjob_are_those_of_its_workers(name: str) -> None:
    documents = documents_of(name)
    rayjob = of_kind(documents, "RayJob")
    (workers,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    in_a_pod = int(trainer_of(rayjob)["resources"]["limits"]["nvidia.com/gpu"])
    values = values_of(rayjob)
    assert int(values["launch.num_processes"]) == workers["replicas"] * in_a_pod
    assert int(values["launch.min_processes"]) == workers["minReplicas"] * in_a_pod
    assert 1 <= workers["minReplicas"] <= workers["replicas"] == workers["maxReplicas"]
    budgets = {
        d["metadata"]["name"]: d["spec"]["minAvailable"] for d in documents if d["kind"] == "PodDisruptionBudget"
    }
    run = rayjob["metadata"]["name"]
    assert budgets == {f"{run}-head": 1, f"{run}-worker": workers["replicas"] - 1}


@pytest.mark.parametrize("name", EVERYTHING)
def test_threads_of_a_pods_processes_are_its_cpus(name: str) -> None:
    workload = workload_of(documents_of(name))
    resources = trainer_of(workload)["resources"]
    num_processes = int(resources["limits"].get("nvidia.com/gpu", 1))
    threads = int(values_of(workload)["launch.threads_per_process"])
    assert threads * num_processes == int(resources["limits"]["cpu"]) == int(resources["requests"]["cpu"])
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert ("nvidia.com/gpu" in resources["limits"]) is (name not in ("job-cpu", "submitted-overlay"))


@pytest.mark.parametrize("name", EVERYTHING)
def test_metrics_are_served_where_the_port_is_declared(name: str) -> None:
    workload = workload_of(documents_of(name))
    ports = {port["name"]: port["containerPort"] for port in trainer_of(workload)["ports"]}
    values = values_of(workload)
    # KubeRay takes a port `metrics` for that of Ray's own.
    assert ports["metrics" if workload["kind"] == "Job" else "dcdist-metrics"] == 9400
    assert values["metrics.prometheus_port"] == "9400"
    assert values["metrics.prometheus_address"] == "0.0.0.0"


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_command_of_a_job_is_understood(name: str) -> None:
    workload = workload_of(documents_of(name))
    command = command_of(workload)
    start = [*(["tini", "--"] if workload["kind"] == "Job" else []), "dcdist", "train", "/etc/dcdist/config.yaml"]
    assert command[: len(start)] == start
    launch = load_config(CONFIG, command[len(start) :]).launch
    understood = (launch.backend, launch.num_processes, launch.min_processes)
    if workload["kind"] == "Job":
        assert understood == ("local", "auto", None)
    else:
        (workers,) = workload["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        in_a_pod = int(trainer_of(workload)["resources"]["limits"]["nvidia.com/gpu"])
        assert understood == ("ray", workers["replicas"] * in_a_pod, workers["minReplicas"] * in_a_pod)


def test_the_head_stays_off_machines_that_are_taken_back() -> None:
    pod = pods_of(of_kind(documents_of("rayjob"), "RayJob"))["head"]
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    assert {expression["operator"] for expression in term["matchExpressions"]} == {"NotIn"}  # true without the label
    avoided = {expression["key"]: expression["values"] for expression in term["matchExpressions"]}
    assert avoided["karpenter.sh/capacity-type"] == ["spot"]
    assert avoided["cloud.google.com/gke-spot"] == ["true"]
