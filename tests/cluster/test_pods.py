"""What the Indexed Job's pods would run: the manifest's own command and environment, in two network namespaces."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.availability import unavailable
from tests.cluster.runs import assert_undisturbed_result, attempts, wait_for_step

ROOT = Path(__file__).resolve().parents[2]
# Of the range for documentation, inside the namespaces alone.
ADDRESSES = ("198.51.100.1", "198.51.100.2")
NAMES = ("dcdist-pod-0", "dcdist-pod-1")


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    """The training container of k8s/overlays/job-cpu, as kustomize renders it."""
    if shutil.which("kubectl") is None:
        unavailable("kubectl, which renders the manifests, is not in PATH")
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / "job-cpu")]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (job,) = (document for document in yaml.safe_load_all(rendered) if document["kind"] == "Job")
    found = job["spec"]["template"]["spec"]["containers"][0]
    return {**found, "job": job["metadata"]["name"], "subdomain": job["spec"]["template"]["spec"]["subdomain"]}


@pytest.fixture(scope="module")
def namespaces(container: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """A command prefix a pod: two hosts on one wire, where pod 0 has the name that the Service would give it.

    Where namespaces are not allowed both are processes of this machine.
    """
    pod_name = f"{container['job']}-0.{container['subdomain']}"
    if os.geteuid() != 0 or shutil.which("ip") is None or not _can_make_namespaces():
        unavailable("network namespaces need root and `ip`")
    folders = [Path("/etc/netns", name) for name in NAMES]
    try:
        for name, folder in zip(NAMES, folders, strict=True):
            _ip("netns", "add", name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESSES[0]} {pod_name}\n")
        _ip("link", "add", "dcpod0", "netns", NAMES[0], "type", "veth", "peer", "name", "dcpod1", "netns", NAMES[1])
        for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", f"dcpod{number}")
            _ip("-n", name, "link", "set", f"dcpod{number}", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield tuple(("ip", "netns", "exec", name) for name in NAMES)
    finally:
        for name, folder in zip(NAMES, folders, strict=True):
            _ip("netns", "delete", name, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"{arguments}: {done.stderr}"


def _can_make_namespaces() -> bool:
    _ip("netns", "delete", NAMES[0], check=False)
    _ip("netns", "delete", NAMES[1], check=False)
    return subprocess.run(["ip", "netns", "add", NAMES[0]], capture_output=True).returncode == 0 and (
        subprocess.run(["ip", "netns", "delete", NAMES[0]], capture_output=True).returncode == 0
    )


@dataclass(frozen=True)
class Pod:
    """One container that was started; its first process is the one that gets the kubelet's signals."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float = 120) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the pod did not end within {seconds} s: {self.log.read_text()}") from None


def start_pods(
    container: dict[str, Any], prefixes: Sequence[tuple[str, ...]], config: Path, *overrides: str
) -> list[Pod]:
    """Both pods of the Job, each with the environment that the Job controller and the kubelet would give it."""
    pods = []
    for index, prefix in enumerate(prefixes):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DCDIST")}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["HOSTNAME"] = f"{container['job']}-{index}"
        environment |= resolved_environment(container, index, config.parent / f"home-{index}")
        words = [*container["command"], *container["args"], "launch.threads_per_process=1", *overrides]
        # tini is process 1 of the container; `ip netns exec` becomes the command itself.
        assert words[:2] == ["tini", "--"]
        command = [str(config) if word == "/etc/dcdist/config.yaml" else word for word in words[2:]]
        log = config.parent / f"pod-{index}.log"
        with log.open("ab") as output:
            process = subprocess.Popen([*prefix, *command], env=environment, stdout=output, stderr=output)
        pods.append(Pod(process, log))
    return pods


def resolved_environment(container: dict[str, Any], index: int, home: Path) -> dict[str, str]:
    """The container's variables; each may name those before it, as $(NAME)."""
    fields = {
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
        "metadata.labels['batch.kubernetes.io/job-name']": container["job"],
    }
    values: dict[str, str] = {}
    for entry in container["env"]:
        text = entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        values[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text)
    home.mkdir(exist_ok=True)
    return {**values, "HOME": str(home), "DCDIST_CACHE": str(home / "cache")}


def test_two_pods_are_one_run_and_sigterm_to_one_saves_it(
    container: dict[str, Any],
    namespaces: tuple[tuple[str, ...], ...],
    config: Path,
    undisturbed_on_two: dict[str, Any],
) -> None:
    run = config.parent / "run"
    pods = start_pods(container, namespaces, config)
    wait_for_step(run, 20)
    pods[1].process.send_signal(signal.SIGTERM)  # evicted
    assert [pod.wait() for pod in pods] == [75, 75]
    (first,) = attempts(run)
    assert first["num_processes"] == 2
    assert (first["ended"]["exit_code"], first["ended"]["signal"]) == (75, "SIGTERM")
    pods = start_pods(container, namespaces, config)  # as the Job replaces them
    assert [pod.wait() for pod in pods] == [0, 0]
    assert attempts(run)[1]["repeated_steps"] == 0
    assert_undisturbed_result(run, undisturbed_on_two)


def test_a_pod_that_is_stopped_or_misconfigured_ends_with_the_code_that_fails_the_job(
    container: dict[str, Any], namespaces: tuple[tuple[str, ...], ...], config: Path
) -> None:
    run = config.parent / "run"
    pods = start_pods(container, namespaces, config, "train.num_epoch=3")
    assert [pod.wait() for pod in pods] == [2, 2]
    assert "did you mean train.num_epochs" in pods[0].log.read_text()
    pods = start_pods(container, namespaces, config)
    wait_for_step(run, 5)
    subprocess.run([sys.executable, "-m", "dcdist", "stop", str(run)], check=True, capture_output=True)
    assert [pod.wait() for pod in pods] == [3, 3]
