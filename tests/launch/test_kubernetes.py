"""The manifests and `dcdist submit k8s`: what kubectl renders, without a cluster.

rendered/ holds what it should be. To write it anew, and then read the difference:
DCDIST_REGENERATE=1 .venv/bin/pytest tests/launch/test_kubernetes.py -k kept
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dcdist.config.load import load_config, to_yaml
from dcdist.errors import UsageError
from dcdist.launch.kubernetes import KubernetesSubmission, render, submit
from tests.availability import unavailable

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
RENDERED = Path(__file__).parent / "rendered"
SCHEMAS = ROOT.parent / "shared" / "schemas"
CONFIG = K8S / "pod" / "config.yaml"
KUBERNETES_VERSIONS = ("1.31", "1.37")  # the oldest that k8s/README.md names, and the newest that is known here

FOLDERS = {
    "job": K8S / "job",
    "rayjob": K8S / "rayjob",
    "job-cpu": K8S / "overlays" / "job-cpu",
    "rayjob-s3": K8S / "overlays" / "rayjob-s3",
}
SUBMISSIONS = {
    "submitted-job": KubernetesSubmission(
        config=CONFIG,
        base=K8S / "job",
        name="digits",
        overrides=("run.dir=/runs/mine",),
        image="images.example/dcdist:1",
        namespace="vision",
        nodes=3,
        gpus_per_node=4,
        cpus_per_node=32,
        memory="128Gi",
    ),
    "submitted-rayjob": KubernetesSubmission(
        config=CONFIG,
        base=K8S / "rayjob",
        name="digits",
        overrides=("run.dir=/runs/mine",),
        image="images.example/dcdist:1",
        namespace="vision",
        nodes=3,
        gpus_per_node=4,
        cpus_per_node=32,
        memory="128Gi",
    ),
    "submitted-overlay": KubernetesSubmission(
        config=CONFIG, base=K8S / "overlays" / "job-cpu", name="digits-on-cpu", nodes=1
    ),
}
EVERYTHING = [*FOLDERS, *SUBMISSIONS]
RAY = [name for name in EVERYTHING if "rayjob" in name]
JOBS = [name for name in EVERYTHING if "rayjob" not in name]

Document = dict[str, Any]


@functools.cache
def text_of(name: str) -> str:
    """What kubectl renders of a folder, or `render` of a submission."""
    if shutil.which("kubectl") is None:
        unavailable("kubectl is not installed")
    if name in SUBMISSIONS:
        return render(SUBMISSIONS[name])
    done = subprocess.run(["kubectl", "kustomize", FOLDERS[name]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents_of(name: str) -> list[Document]:
    return list(yaml.safe_load_all(text_of(name)))


def of_kind(documents: list[Document], kind: str) -> Document:
    found = [document for document in documents if document["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def workload_of(documents: list[Document]) -> Document:
    return next(document for document in documents if document["kind"] in ("Job", "RayJob"))


def pods_of(workload: Document) -> dict[str, Document]:
    """The pod templates: "worker" are those that train."""
    if workload["kind"] == "Job":
        return {"worker": workload["spec"]["template"]}
    cluster = workload["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return {"worker": workers["template"], "head": cluster["headGroupSpec"]["template"]}


def trainer_of(workload: Document) -> Document:
    """The container that trains."""
    (container,) = pods_of(workload)["worker"]["spec"]["containers"]
    return dict(container)


def command_of(workload: Document) -> list[str]:
    if workload["kind"] == "RayJob":
        return list(workload["spec"]["entrypoint"].split())
    return [*trainer_of(workload)["command"], *trainer_of(workload)["args"]]


def values_of(workload: Document) -> dict[str, str]:
    """The a.b=value of the command."""
    return dict(word.split("=", 1) for word in command_of(workload) if "=" in word)


def environment_of(container: Document, labels: dict[str, str]) -> dict[str, str]:
    """The variables of a container, as the kubelet resolves them from the pod's labels."""
    environment: dict[str, str] = {}
    for variable in container["env"]:
        value = variable.get("value", "")
        if "valueFrom" in variable:
            path = re.fullmatch(
                r"metadata\.(labels|annotations)\['(.+)'\]", variable["valueFrom"]["fieldRef"]["fieldPath"]
            )
            assert path is not None
            value = labels[path[2]] if path[1] == "labels" else f"<{path[2]}>"
        environment[variable["name"]] = re.sub(
            r"\$\(([A-Z_]+)\)", lambda match: environment.get(match[1], match[0]), value
        )
    return environment


def selects(selector: dict[str, str], pod: Document) -> bool:
    return selector.items() <= pod["metadata"]["labels"].items()


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


# Exit codes


def decision(job: Document, exit_code: int, conditions: tuple[str, ...] = ()) -> str:
    """What the Job controller does with a pod that failed: the action of the first rule that fits, else Count."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            codes = rule["onExitCodes"]
            assert codes["containerName"] in [c["name"] for c in job["spec"]["template"]["spec"]["containers"]]
            if (exit_code in codes["values"]) is (codes["operator"] == "In"):
                return str(rule["action"])
        elif any(pattern["type"] in conditions and pattern["status"] == "True" for pattern in rule["onPodConditions"]):
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize(
    ("exit_code", "conditions", "action"),
    [
        (75, (), "Ignore"),
        (75, ("DisruptionTarget",), "Ignore"),
        (2, (), "FailJob"),
        (3, (), "FailJob"),
        (3, ("DisruptionTarget",), "FailJob"),  # stopped on request while its machine is drained
        (1, (), "Count"),
        (1, ("DisruptionTarget",), "Ignore"),
        (137, ("DisruptionTarget",), "Ignore"),
        (137, (), "Count"),  # out of memory
        (139, (), "Count"),
    ],
)
def test_what_the_job_does_with_an_exit_code(
    name: str, exit_code: int, conditions: tuple[str, ...], action: str
) -> None:
    assert decision(of_kind(documents_of(name), "Job"), exit_code, conditions) == action


@pytest.mark.parametrize("name", JOBS)
def test_a_pod_is_replaced_when_it_is_gone_and_the_run_ends_with_rank_0(name: str) -> None:
    spec = of_kind(documents_of(name), "Job")["spec"]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # the failure policy needs it
    assert spec["completionMode"] == "Indexed"
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert spec["backoffLimit"] == 3 * spec["completions"]


@pytest.mark.parametrize("name", RAY)
@pytest.mark.parametrize(("exit_code", "ends_well"), [(0, True), (3, True), (75, False), (1, False), (2, False)])
def test_what_ray_sees_of_an_exit_code(name: str, exit_code: int, ends_well: bool, tmp_path: Path) -> None:
    entrypoint = of_kind(documents_of(name), "RayJob")["spec"]["entrypoint"]
    command = tmp_path / "dcdist"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexit {exit_code}\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(entrypoint, shell=True, env=environment, check=False)  # as Ray's job supervisor does
    assert (done.returncode == 0) is ends_well
    assert (tmp_path / "arguments").read_text().startswith("train /etc/dcdist/config.yaml launch.backend=ray ")


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


@pytest.mark.parametrize("name", JOBS)
def test_the_command_of_a_job_is_understood(name: str) -> None:
    documents = documents_of(name)
    command = command_of(of_kind(documents, "Job"))
    assert command[:5] == ["tini", "--", "dcdist", "train", "/etc/dcdist/config.yaml"]
    config = load_config(CONFIG, command[5:])
    assert config.launch.backend == "local"
    assert config.launch.num_processes == "auto"


def test_the_head_stays_off_machines_that_are_taken_back() -> None:
    pod = pods_of(of_kind(documents_of("rayjob"), "RayJob"))["head"]
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    assert {expression["operator"] for expression in term["matchExpressions"]} == {"NotIn"}  # true without the label
    avoided = {expression["key"]: expression["values"] for expression in term["matchExpressions"]}
    assert avoided["karpenter.sh/capacity-type"] == ["spot"]
    assert avoided["cloud.google.com/gke-spot"] == ["true"]


# The end of a pod


def hook_of(container: Document) -> str:
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["sh", "-c"]
    return str(command[2])


@pytest.mark.parametrize("name", RAY)
def test_a_ray_pod_has_time_to_save_and_to_drain(name: str) -> None:
    rayjob = of_kind(documents_of(name), "RayJob")
    stop_wait = yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    for pod in pods_of(rayjob).values():
        (container,) = pod["spec"]["containers"]
        (bound,) = re.findall(r"\$\(seq (\d+)\)", hook_of(container))
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod["spec"]["terminationGracePeriodSeconds"] >= int(bound) + drain + 30
        assert int(stop_wait) == int(bound) >= 60
    assert rayjob["spec"]["shutdownAfterJobFinishes"] is True
    assert rayjob["spec"]["submissionMode"] == "HTTPMode"


@pytest.mark.parametrize("name", JOBS)
def test_a_pod_of_a_job_has_time_to_save(name: str) -> None:
    assert of_kind(documents_of(name), "Job")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


@pytest.fixture
def session(tmp_path: Path) -> dict[str, str]:
    """An environment in which pkill and pgrep see the processes of their own session alone."""
    for name in ("pkill", "pgrep"):
        tool = shutil.which(name)
        if tool is None:
            unavailable(f"{name} is not installed")
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {tool} --session 0 "$@"\n')
        (tmp_path / name).chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


TRAINS = """
import pathlib, signal, sys, time
def leave(*_):
    time.sleep(2)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("trains", flush=True)
time.sleep(60)
"""


def test_pre_stop_sends_sigterm_and_waits_for_the_save(session: dict[str, str], tmp_path: Path) -> None:
    hook = hook_of(trainer_of(of_kind(documents_of("rayjob"), "RayJob")))
    (tmp_path / "trains.py").write_text(TRAINS)
    # As Ray starts a command, with a shell around it, which has to live on and say with what the command ended.
    command = (
        f"{sys.executable} {tmp_path}/trains.py {tmp_path}/saved dcdist train; echo ended with $? > {tmp_path}/end"
    )
    script = f"""
sh -c '{command}' > {tmp_path}/out &
until grep -q trains {tmp_path}/out; do sleep 0.1; done
sh -c "$HOOK"
echo hook ended with $?, $(cat {tmp_path}/saved)
wait
"""
    environment = session | {"HOOK": hook}
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, start_new_session=True, timeout=60
    )
    assert done.stdout == "hook ended with 0, saved\n"
    assert (tmp_path / "end").read_text() == "ended with 75\n"


def test_pre_stop_ends_at_once_where_nothing_trains(session: dict[str, str]) -> None:
    hook = hook_of(pods_of(of_kind(documents_of("rayjob"), "RayJob"))["head"]["spec"]["containers"][0])
    start = time.monotonic()
    assert subprocess.run(["sh", "-c", hook], env=session, start_new_session=True, timeout=60).returncode == 0
    assert time.monotonic() - start < 10


# dcdist submit k8s


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
