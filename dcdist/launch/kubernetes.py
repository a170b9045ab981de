"""`dcdist submit k8s`: a run as a Job or a RayJob, rendered by kustomize from the manifests that a person would apply.

A kustomization on top of the base, in a temporary folder, sets name, namespace, image, config, number of machines and
resources. Everything else stays as the base has it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dcdist.config.load import load_config, to_yaml
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError
from dcdist.launch.base import check_initial_weights, relative_paths

CONFIG_FILE = "/etc/dcdist/config.yaml"  # in the pods
GPU = "nvidia.com/gpu"
FAILURES_PER_NODE = 3  # a failure of the whole run counts once a pod
# In which a run would end with its pod, or to which it could not write.
FLEETING_VOLUMES = {"emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected", "image"}
LONGEST_NAME = {"Job": 63, "RayJob": 47}  # of a pod's host name, which ends with -INDEX; KubeRay's own limit

Document = dict[str, Any]


@dataclass(frozen=True)
class KubernetesSubmission:
    """A run to start in a cluster; what is None stays as the base has it.

    Args:
        config: the experiment file.
        base: folder of a kustomization with one Job or RayJob: k8s/job, k8s/rayjob or an overlay of them.
        name: of the Job or RayJob; its Service, ConfigMap and disruption budgets are named after it.
        nodes: pods that train, each one machine's share of the run.
    """

    config: Path
    base: Path
    name: str
    overrides: tuple[str, ...] = ()
    image: str | None = None
    namespace: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    memory: str | None = None


def name_of_run(run_dir: str) -> str:
    """The last part of run.dir as Kubernetes takes names: lower case letters, digits and "-"."""
    return re.sub(r"[^a-z0-9]+", "-", run_dir.rstrip("/").rpartition("/")[2].lower()).strip("-")


def render(submission: KubernetesSubmission) -> str:
    """The manifests, as YAML. Raises UsageError for a submission that makes none."""
    experiment = load_config(submission.config, submission.overrides)
    _check_sizes(submission)
    workload = _Workload.of_base(submission.base)
    _check_names(submission, workload)
    _check_paths(experiment, workload)
    with tempfile.TemporaryDirectory() as folder:
        # kustomize takes other folders by relative paths alone.
        base = os.path.relpath(submission.base.resolve(), Path(folder).resolve())
        kustomization = _kustomization(submission, workload, base, to_yaml(experiment))
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return _kubectl("kustomize", folder)


def submit(submission: KubernetesSubmission) -> str:
    """Applies the manifests and returns what was started, as kubectl names it ("job.batch/digits").

    Raises:
        UsageError: as `render`; kubectl refuses; there is a Job or RayJob of this name already.
    """
    manifests = render(submission)
    taken = UsageError(
        f"--name {submission.name}: there is such a Job or RayJob already, nothing was started. Delete it (the run "
        "goes on where it ended), or give another name"
    )
    try:
        answer = _kubectl("apply", "-f", "-", text=manifests)
    except UsageError as error:
        raise taken if "field is immutable" in str(error) else error from None
    for resource, done in re.findall(r"^(\S+) (\w+)", answer, flags=re.MULTILINE):
        if resource in (f"job.batch/{submission.name}", f"rayjob.ray.io/{submission.name}"):
            if done != "created":
                raise taken
            return str(resource)
    raise UsageError(f"kubectl apply does not say that it created {submission.name}: {_one_line(answer)}")


@dataclass(frozen=True)
class _Workload:
    """The Job or RayJob of a base, among what else the base renders."""

    documents: Sequence[Document]
    document: Document

    @classmethod
    def of_base(cls, base: Path) -> _Workload:
        if not any((base / name).is_file() for name in ("kustomization.yaml", "kustomization.yml", "Kustomization")):
            raise UsageError(
                f"--base {base} holds no kustomization.yaml; expected a folder like k8s/job, k8s/rayjob or an overlay"
            )
        documents = [document for document in yaml.safe_load_all(_kubectl("kustomize", str(base))) if document]
        found = [document for document in documents if document["kind"] in LONGEST_NAME]
        if len(found) != 1:
            kinds = ", ".join(sorted({document["kind"] for document in documents})) or "nothing"
            raise UsageError(f"--base {base} renders {kinds}; expected one Job or one RayJob, as k8s/job does")
        return cls(documents, found[0])

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def spec(self) -> Document:
        return dict(self.document["spec"])

    @property
    def workers(self) -> Document:
        """The group of a RayJob's pods that train."""
        return dict(self.spec["rayClusterSpec"]["workerGroupSpecs"][0])

    @property
    def num_nodes(self) -> int:
        return int(self.spec["completions"] if self.kind == "Job" else self.workers["replicas"])

    @property
    def pods(self) -> dict[str, Document]:
        """Path and template of the pods; first those that train."""
        if self.kind == "Job":
            return {"/spec/template": self.spec["template"]}
        head = self.spec["rayClusterSpec"]["headGroupSpec"]["template"]
        return {
            "/spec/rayClusterSpec/workerGroupSpecs/0/template": self.workers["template"],
            "/spec/rayClusterSpec/headGroupSpec/template": head,
        }

    @property
    def container_path(self) -> str:
        return f"{next(iter(self.pods))}/spec/containers/0"

    @property
    def container(self) -> Document:
        """The container that trains."""
        return dict(next(iter(self.pods.values()))["spec"]["containers"][0])

    def lasting_mounts(self) -> list[str]:
        """Where that container can write what outlives it."""
        volumes = next(iter(self.pods.values()))["spec"].get("volumes", [])
        lasting = {volume["name"] for volume in volumes if not FLEETING_VOLUMES & set(volume)}
        return [mount["mountPath"] for mount in self.container.get("volumeMounts", []) if mount["name"] in lasting]


def _kustomization(submission: KubernetesSubmission, workload: _Workload, base: str, config: str) -> Document:
    labels: Document = {"pairs": {"app.kubernetes.io/instance": submission.name}}
    labels |= {"includeSelectors": True, "includeTemplates": True}
    labels["fields"] = [
        {"kind": workload.kind, "path": re.sub(r"/\d+", "", pod).lstrip("/") + "/metadata/labels", "create": True}
        for pod in workload.pods
    ]
    patches = [
        _patch({"kind": workload.kind}, _changes(submission, workload)),
        _patch(_component("ConfigMap", "config"), {"/data": {"config.yaml": config}}),
        *_new_names(submission.name, workload),
    ]
    if submission.nodes is not None:  # drains take one pod at a time
        patches.append(
            _patch(_component("PodDisruptionBudget", "worker"), {"/spec/minAvailable": submission.nodes - 1})
        )
    namespace = {} if submission.namespace is None else {"namespace": submission.namespace}
    return {"resources": [base], "labels": [labels], "patches": patches, **namespace}


def _component(kind: str, component: str) -> Document:
    return {"kind": kind, "labelSelector": f"app.kubernetes.io/component={component}"}


def _patch(target: Document, changes: Mapping[str, Any], **options: bool) -> Document:
    """A JSON patch; where a path exists already, `add` replaces what is there."""
    operations = [{"op": "add", "path": path, "value": value} for path, value in changes.items()]
    return {"target": target, "patch": json.dumps(operations), "options": options}


def _new_names(name: str, workload: _Workload) -> Iterator[Document]:
    """What is named after the base's Job or RayJob is named after this one; runs share claims and Secrets."""
    yield _patch(_component("ConfigMap", "config"), {"/metadata/name": f"{name}-config"}, allowNameChange=True)
    base_name = workload.document["metadata"]["name"]
    for document in workload.documents:
        kind, old_name = document["kind"], document["metadata"]["name"]
        is_named_after = old_name == base_name or old_name.startswith(f"{base_name}-")
        if is_named_after and kind not in ("ConfigMap", "PersistentVolumeClaim", "Secret"):
            new_name = name + old_name.removeprefix(base_name)
            yield _patch({"kind": kind, "name": old_name}, {"/metadata/name": new_name}, allowNameChange=True)


def _changes(submission: KubernetesSubmission, workload: _Workload) -> Document:
    """Paths in the Job or RayJob, and what stands there from now on."""
    num_nodes = submission.nodes or workload.num_nodes
    resources = _resources(submission, workload.container.get("resources", {}))
    num_processes = int(resources["limits"].get(GPU, 0)) or 1  # in a pod
    changes: Document = {f"{workload.container_path}/resources": resources}
    values = {}
    if submission.cpus_per_node is not None:
        values["launch.threads_per_process"] = str(max(1, submission.cpus_per_node // num_processes))
    if workload.kind == "Job":
        arguments = _with_values(workload.container.get("args", []), values, submission.overrides)
        # Kubernetes would take $(NAME) for a variable.
        changes[f"{workload.container_path}/args"] = [argument.replace("$(", "$$(") for argument in arguments]
        changes |= {"/spec/completions": num_nodes, "/spec/parallelism": num_nodes}
        changes["/spec/backoffLimit"] = FAILURES_PER_NODE * num_nodes
        names = [variable["name"] for variable in workload.container.get("env", [])]
        if "NUM_NODES" not in names:
            raise UsageError(f"--base {submission.base}: the Job's container has no NUM_NODES, as that of k8s/job has")
        changes[f"{workload.container_path}/env/{names.index('NUM_NODES')}/value"] = str(num_nodes)
    else:
        group = "/spec/rayClusterSpec/workerGroupSpecs/0"
        least = min(num_nodes, int(workload.workers.get("minReplicas", num_nodes)))
        changes |= {f"{group}/replicas": num_nodes, f"{group}/maxReplicas": num_nodes, f"{group}/minReplicas": least}
        values["launch.num_processes"] = str(num_nodes * num_processes)
        values["launch.min_processes"] = str(least * num_processes)
        # A shell command: its words stay as they are spelled, new ones are quoted.
        words = _with_values(workload.spec["entrypoint"].split(), values, submission.overrides, shlex.quote)
        changes["/spec/entrypoint"] = " ".join(words)
    return changes | dict(_images(submission.image, workload))


def _images(image: str | None, workload: _Workload) -> Iterator[tuple[str, str]]:
    """For every container with the image of the one that trains; what else a base has keeps its own."""
    for path, pod in workload.pods.items():
        for kind in ("containers", "initContainers"):
            for index, container in enumerate(pod["spec"].get(kind, [])):
                if image is not None and container["image"] == workload.container["image"]:
                    yield f"{path}/spec/{kind}/{index}/image", image


def _resources(submission: KubernetesSubmission, given: Document) -> Document:
    resources = {kind: dict(given.get(kind, {})) for kind in ("requests", "limits")}
    for amounts in resources.values():
        if submission.cpus_per_node is not None:
            amounts["cpu"] = str(submission.cpus_per_node)
        if submission.memory is not None:
            amounts["memory"] = submission.memory
        if submission.gpus_per_node is not None:
            amounts.pop(GPU, None)
    if submission.gpus_per_node:
        resources["limits"][GPU] = str(submission.gpus_per_node)
    return resources


def _with_values(
    words: Sequence[str], values: Mapping[str, str], overrides: Sequence[str], quote: Callable[[str], str] = str
) -> list[str]:
    """A command with other a.b=value. Those of the user are in the config, which gives way to the command's own."""
    given = dict(override.split("=", 1) for override in overrides)
    named = {word.partition("=")[0] for word in words if "=" in word}
    changed = list(words)
    for key, value in {**values, **{key: value for key, value in given.items() if key in named | set(values)}}.items():
        word = quote(f"{key}={value}")
        if key in named:
            changed = [word if old.startswith(f"{key}=") else old for old in changed]
        else:  # among the arguments; a shell command goes on behind them
            changed.insert(changed.index(CONFIG_FILE) + 1 if CONFIG_FILE in changed else len(changed), word)
    return changed


def _check_sizes(submission: KubernetesSubmission) -> None:
    for option, value, least in (
        ("--nodes", submission.nodes, 1),
        ("--gpus-per-node", submission.gpus_per_node, 0),
        ("--cpus-per-node", submission.cpus_per_node, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{option} {value}: expected a whole number from {least}")
    if submission.memory is not None and not re.fullmatch(r"[1-9]\d*(\.\d+)?([KMGT]i|[kMGT])?", submission.memory):
        raise UsageError(f"--memory {submission.memory}: expected a Kubernetes quantity, as 32Gi or 500M")


def _check_names(submission: KubernetesSubmission, workload: _Workload) -> None:
    longest = LONGEST_NAME[workload.kind]
    if workload.kind == "Job":
        longest -= len(f"-{(submission.nodes or workload.num_nodes) - 1}")
    # They become names of Services, too.
    for option, name, limit in (("--name", submission.name, longest), ("--namespace", submission.namespace, 63)):
        if name is not None and (len(name) > limit or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)):
            raise UsageError(
                f"{option} {name}: expected at most {limit} of a-z, 0-9 and -, the first a letter and the last no -"
            )


def _check_paths(experiment: ExperimentConfig, workload: _Workload) -> None:
    run, data = (text.removeprefix("file://") for text in (experiment.run.dir, experiment.data.root))
    mounts = workload.lasting_mounts()
    if "://" not in run and not any(PurePosixPath(run).is_relative_to(mount) for mount in mounts):
        choices = " or ".join(f"{mount}/..." for mount in mounts) or "no volume of this base"
        raise UsageError(
            f"run.dir={experiment.run.dir} would end with its pod; expected a URL (s3://bucket/...) or a folder on a "
            f"volume that stays ({choices}): override run.dir"
        )
    if "://" not in data and not PurePosixPath(data).is_absolute():
        raise UsageError(
            f"data.root={experiment.data.root} is a folder of this machine; expected a URL (s3://bucket/...) or an "
            "absolute path in the pods, on a volume or in the image: override data.root"
        )
    if relative := relative_paths(experiment):
        given = ", ".join(f"{key}={path}" for key, path in relative.items())
        raise UsageError(f"{given} would not be found; expected absolute paths in the pods: override what is relative")
    check_initial_weights(experiment)


def _kubectl(*arguments: str, text: str | None = None) -> str:
    if shutil.which("kubectl") is None:
        raise UsageError("kubectl is not on PATH: install it, it renders and applies the manifests")
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # kustomize's errors come as lines of a log.
        reason = re.sub(r'^E\d{4} .*? "command failed" err="(.*)"$', r"\1", _one_line(done.stderr))
        raise UsageError(f"kubectl {arguments[0]} ends with exit code {done.returncode}: {reason}")
    return done.stdout


def _one_line(text: str) -> str:
    return " ".join(text.split())
