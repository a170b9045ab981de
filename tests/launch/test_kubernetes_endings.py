"""How a run ends in a cluster: what is made of exit codes, and the time to save."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.availability import unavailable
from tests.launch.kubernetes_manifests import (
    JOBS,
    RAY,
    Document,
    documents_of,
    of_kind,
    pods_of,
    trainer_of,
)

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
