"""Runs on a real Ray cluster of two nodes, through the dashboard's job server, disturbed and not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcdist.metrics.jsonl import read_metrics
from dcdist.storage import open_storage
from tests.cluster.prometheus import watching
from tests.cluster.ray import RayCluster
from tests.cluster.runs import NUM_STEPS, assert_undisturbed_result, attempts, reached, wait_for_step
from tests.cluster.slurm import wait_for

DCDIST = str(Path(sys.executable).with_name("dcdist"))
OVERRIDES = ("launch.num_processes=2", "launch.resources.slot=1")


@pytest.fixture(scope="module")
def ray() -> Iterator[RayCluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: sockets lie in it, whose paths have 107 characters
    cluster = RayCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def submit(ray: RayCluster, job: str, config: Path, *overrides: str, **environment_of_job: str) -> None:
    """The documented command."""
    options = (f"--address={ray.dashboard}", f"--submission-id={job}", "--no-wait")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": "120", **environment_of_job}
    environment = f"--runtime-env-json={json.dumps({'env_vars': variables})}"
    command = (DCDIST, "train", str(config), "launch.backend=ray", *OVERRIDES, *overrides)
    ray.run("job", "submit", *options, environment, "--", *command)


def dcdist(ray: RayCluster, *arguments: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [DCDIST, *arguments], env=ray.environment | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def wait_for_status(ray: RayCluster, job: str, status: str) -> None:
    wait_for(lambda: ray.job_status(job) == status, 300, f"job {job} is {status}", lambda: ray.job_logs(job)[-3000:])


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(open_storage(run)) if record["kind"] == "step"]


def test_a_job_is_stopped_and_another_goes_on(
    ray: RayCluster, config: Path, undisturbed_on_two: dict[str, Any]
) -> None:
    run = config.parent / "run"
    submit(ray, "stopped", config)
    wait_for_step(run, 20)
    ray.run("job", "stop", f"--address={ray.dashboard}", "stopped")
    wait_for_status(ray, "stopped", "STOPPED")
    (first,) = attempts(run)
    assert (first["ended"]["exit_code"], first["ended"]["signal"]) == (75, "SIGTERM")
    job = dcdist(ray, "submit", "ray", str(config), *OVERRIDES, "--address", ray.dashboard).strip()
    wait_for_status(ray, job, "SUCCEEDED")
    assert attempts(run)[1]["repeated_steps"] == 0
    assert attempts(run)[1]["launcher"]["name"] == "ray"
    assert_undisturbed_result(run, undisturbed_on_two)


def test_a_node_dies_and_the_run_ends_on_what_is_left(ray: RayCluster, config: Path, undisturbed_run: Path) -> None:
    run = config.parent / "run"
    submit(ray, "bereft", config, "launch.min_processes=1")
    wait_for_step(run, 20)
    ray.kill_second_node()
    wait_for_status(ray, "bereft", "SUCCEEDED")
    ray.start_second_node()
    first, *_, last = attempts(run)
    assert [first["num_processes"], last["num_processes"]] == [2, 1]
    assert last["ended"]["exit_code"] == 0
    assert last["launcher"]["restart_count"] >= 1
    assert last["repeated_steps"] <= 5
    assert reached(run, len(attempts(run))) == NUM_STEPS
    # Other samples, or another order, would give other losses from the kill on.
    assert losses(run) == pytest.approx(losses(undisturbed_run), rel=1e-3)


def test_prometheus_reads_the_run_beside_ray_itself(ray: RayCluster, config: Path) -> None:
    run, discovery = config.parent / "run", config.parent / "discovery"
    of_ray = {"job_name": "ray", "file_sd_configs": [{"files": [str(ray.prometheus_discovery)]}]}
    with watching(config.parent / "prometheus", discovery, of_ray) as prometheus:
        metrics = ("metrics.prometheus_port=0", f"metrics.prometheus_discovery={discovery}", "train.num_epochs=100000")
        submit(ray, "watched", config, *metrics)
        own = f'run="{run}", instance="{run}", job="dcdist"'
        (info,) = prometheus.wait_for(f"dcdist_job_info{{{own}}} and on (run) dcdist_progress_steps > 20", 180)
        assert info["metric"]["launcher"] == "ray"
        (processes,) = prometheus.wait_for(f"sum by (run) (dcdist_processes{{{own}}})")
        assert processes["value"][1] == "2"
        prometheus.wait_for('count(up{job="ray"} == 1) >= 2')  # its nodes
        prometheus.wait_for('{__name__=~"ray_node_.*", job="ray"}')
        assert prometheus.query('{__name__=~"dcdist_.*", job="ray"}') == []
        dcdist(ray, "stop", str(run))
        wait_for_status(ray, "watched", "FAILED")  # exit code 3
        assert list(discovery.iterdir()) == []
        (finished,) = prometheus.query(f"last_over_time(dcdist_finished{{{own}}}[5m])")
        assert finished["value"][1] == "1"


@pytest.mark.soak
def test_stopped_on_request_it_is_not_started_again(ray: RayCluster, config: Path) -> None:
    run = config.parent / "run"
    command = [DCDIST, "train", str(config), "launch.backend=ray", *OVERRIDES]
    driver = subprocess.Popen(command, env=ray.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(run, 20)
    assert "attempt 1" in dcdist(ray, "stop", str(run))
    assert driver.wait(60) == 3
    (only,) = attempts(run)
    assert only["ended"]["exit_code"] == 3


@pytest.mark.soak
def test_three_groups_whose_processes_are_all_killed(ray: RayCluster, config: Path) -> None:
    """As where memory is short: nobody is left to say that the run gets nowhere."""
    submit(ray, "hopeless", config, DCDIST_FAULT="features:batch:1:*")
    wait_for_status(ray, "hopeless", "FAILED")
    assert "not started again: 3 attempts in a row ended without a new checkpoint" in ray.job_logs("hopeless")
    ends = [attempt["ended"] for attempt in attempts(config.parent / "run")]
    assert [(end["exit_code"], end["signal"]) for end in ends] == [(75, None), (75, None), (1, None)]
    assert "exit code 137, and none was left to say why" in ends[0]["reason"]


def test_a_job_that_waits_for_machines_is_stopped_at_once(ray: RayCluster, config: Path) -> None:
    submit(ray, "waiting", config, "launch.resources.slot=2")  # no node has two
    wait_for(lambda: "Requesting resources" in ray.job_logs("waiting"), 180, "Ray looks for machines")
    ray.run("job", "stop", f"--address={ray.dashboard}", "waiting")
    wait_for(lambda: ray.job_status("waiting") == "STOPPED", 30, "the job is stopped")
    assert not (config.parent / "run").exists()


def test_without_a_cluster_one_line_says_so(ray: RayCluster, config: Path) -> None:
    nowhere = {"RAY_ADDRESS": "127.0.0.1:1"}
    text = dcdist(ray, "train", str(config), "launch.backend=ray", code=2, **nowhere)
    assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:1" in text
    assert "Traceback" not in text
    text = dcdist(ray, "submit", "ray", str(config), code=2, **nowhere)
    assert text.startswith("dcdist: no address of a Ray job server ('127.0.0.1:1'): give --address http://HEAD:8265")
    text = dcdist(ray, "submit", "ray", str(config), "--address", "http://127.0.0.1:1", code=2)
    assert text.startswith("dcdist: the job server at http://127.0.0.1:1 takes no job: ")
    assert text.count("\n") == 1
    text = dcdist(ray, "train", str(config), "launch.backend=ray", "launch.resources.teapot=1", code=2)
    assert "the Ray cluster has no teapot" in text
    assert not (config.parent / "run").exists()
