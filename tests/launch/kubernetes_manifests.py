"""The manifests as kubectl renders them, without a cluster, and what is read from them."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from dcdist.launch.kubernetes import KubernetesSubmission, render
from tests.availability import unavailable

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
RENDERED = Path(__file__).parent / "rendered"
CONFIG = K8S / "pod" / "config.yaml"

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
        return shlex.split(workload["spec"]["entrypoint"].rpartition(" || ")[0])  # the rest is for its exit code
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
