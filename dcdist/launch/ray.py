"""Processes on a Ray cluster. Ray Train's TorchTrainer places a worker a device and starts the group again after
failures, on as many as there are between a minimum and a maximum; checkpoints are dcdist's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dcdist.config.load import to_yaml
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import DcdistError, ExitCode, UsageError
from dcdist.launch.base import check_initial_weights, with_absolute_paths
from dcdist.launch.local import FORWARDED

# For `ray job stop`, which asks the driver to end and kills it 3 seconds later unless told otherwise.
STOP_WAIT_SECONDS = 120
LEAVE_AFTER_SECONDS = STOP_WAIT_SECONDS - 10
NOT_INSTALLED = "ray is not installed: pip install 'dcdist[ray]'"


def run_on_ray(config: ExperimentConfig) -> ExitCode:
    """Runs an experiment on the cluster that this process belongs to (RAY_ADDRESS, or the one on this machine).

    A signal that asks this process to end goes on to the workers' processes, which save and end.

    Raises:
        UsageError: Ray is not installed, there is no cluster, it can never give what the config asks for, or its
            processes would not find model.initial_weights.
    """
    check_initial_weights(config)
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean what they mean here
    _check_address()
    try:
        # Before Ray starts threads of its own: while one of them loads a library, loading torch was seen to abort.
        from dcdist.launch import ray_group  # noqa: F401
    except ImportError as error:
        raise UsageError(NOT_INSTALLED) from error
    _connect()
    with _noticing_signals() as asked:
        return _fit(config, asked)


def _check_address() -> None:
    """Ray itself would try for minutes."""
    host, _, port = _ray_address().rpartition(":")
    if host and port.isdigit() and "://" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _no_cluster(error) from error


def _connect() -> None:
    import ray

    try:
        ray.init(address=_ray_address(), configure_logging=False, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(error) from error


def _ray_address() -> str:
    return os.environ.get("RAY_ADDRESS", "auto")


def _no_cluster(error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster at RAY_ADDRESS={_ray_address()} ({_first_line(error)}): start one with `ray start --head`, or "
        "hand the run over by `dcdist submit ray --address http://HEAD:8265`"
    )


@contextlib.contextmanager
def _noticing_signals() -> Iterator[threading.Event]:
    asked = threading.Event()

    def notice(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    previous = {number: signal.signal(number, notice) for number in FORWARDED}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fit(config: ExperimentConfig, asked: threading.Event) -> ExitCode:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from dcdist.launch.ray_group import Group, Overseer, work

    launch = config.launch
    resources = resources_per_process(config, ray.cluster_resources())
    most = launch.num_processes if isinstance(launch.num_processes, int) else int(ray.cluster_resources().get("GPU", 1))
    least = launch.min_processes or most
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    overseer = Overseer.options(scheduling_strategy=here).remote()
    task = {
        "config": to_yaml(config),
        "run": config.run.dir,
        "overseer": overseer,
        "threads": int(resources["CPU"]),
    }
    with tempfile.TemporaryDirectory(prefix="dcdist-ray-") as ray_results:
        trainer = TorchTrainer(
            work,
            train_loop_config=task,
            torch_config=Group(),
            scaling_config=ScalingConfig(
                num_workers=most if least == most else (least, most),
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
            ),
            # dcdist itself ends a run that gets nowhere; Ray's own record of the run is of no use afterwards.
            run_config=RunConfig(
                name="dcdist", storage_path=ray_results, failure_config=FailureConfig(max_failures=-1)
            ),
        )
        fit = _Fit(trainer)
        fit.start()
        while fit.is_alive() and not asked.wait(0.2):
            pass
        if fit.is_alive():
            ray.get(overseer.stop.remote())
            # Where Ray still waits for machines there is nothing to save, and it would wait on.
            fit.join(LEAVE_AFTER_SECONDS if ray.get(overseer.has_begun.remote()) else 0)
    if fit.error is not None:
        raise DcdistError(f"Ray Train ended: {fit.error}") from fit.error
    # None: asked to end before there were processes, or between two groups.
    return ExitCode(fit.exit_code) if fit.exit_code is not None else ExitCode.RUN_AGAIN


class _Fit(threading.Thread):
    """The trainer in a thread of its own: signals reach the main thread alone, which must not wait inside Ray."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="dcdist-ray-train", daemon=True)
        self._trainer = trainer
        self.exit_code: int | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.exit_code = self._trainer.fit().return_value
        except Exception as error:
            self.error = error


def resources_per_process(config: ExperimentConfig, cluster: Mapping[str, float]) -> dict[str, float]:
    """What each worker takes of the cluster: cores for its threads, a GPU where there are any, what the config adds.

    Raises:
        UsageError: the cluster has no such resource, or not enough for the smallest group.
    """
    launch = config.launch
    threads = launch.threads_per_process if isinstance(launch.threads_per_process, int) else 1
    resources: dict[str, float] = {"CPU": threads, **launch.resources}
    if launch.device == "cuda" or (launch.device == "auto" and cluster.get("GPU", 0) > 0):
        resources["GPU"] = 1
    for name in resources:
        if name not in cluster:
            known = ", ".join(sorted(name for name in cluster if ":" not in name))
            raise UsageError(f"the Ray cluster has no {name}, which each process should take; it has {known}")
    return resources


@dataclass(frozen=True)
class RaySubmission:
    """A run as a job of a Ray cluster's job server.

    Args:
        config: the experiment; its relative paths are taken from here and must be the same files there.
        address: of the job server, http://HEAD:8265; None takes RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.
        submission_id: the job's name; None for one of the server's.
    """

    config: ExperimentConfig
    address: str | None = None
    submission_id: str | None = None

    @property
    def entrypoint(self) -> str:
        return "dcdist train config.yaml launch.backend=ray"

    def runtime_env(self, folder: str) -> dict[str, Any]:
        """The folder holds the config alone; a stop leaves the time to save."""
        return {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}}

    def describe(self) -> str:
        """All that would be handed over."""
        job = {
            "address": self._address(),
            "entrypoint": self.entrypoint,
            "submission_id": self.submission_id,
            "runtime_env": self.runtime_env("(a folder with config.yaml)"),
        }
        return f"{json.dumps(job, indent=1)}\n\n# config.yaml\n{self._config_text()}"

    def submit(self) -> str:
        """Hands it over; returns the job's name. Raises UsageError where there is no job server, or it refuses."""
        address = self._address()
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise UsageError(NOT_INSTALLED) from error
        os.environ["RAY_ADDRESS"] = address  # which Ray would otherwise prefer to the one that it is given
        with tempfile.TemporaryDirectory(prefix="dcdist-") as folder:
            Path(folder, "config.yaml").write_text(self._config_text())
            try:
                job = JobSubmissionClient(address).submit_job(
                    entrypoint=self.entrypoint,
                    submission_id=self.submission_id,
                    runtime_env=self.runtime_env(folder),
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(f"the job server at {address} takes no job: {_first_line(error)}") from error
        return str(job)

    def _address(self) -> str:
        address = self.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        if not address or not address.startswith(("http://", "https://")):
            raise UsageError(
                f"no address of a Ray job server ({address!r}): give --address http://HEAD:8265, or set "
                "RAY_API_SERVER_ADDRESS"
            )
        return address

    def _config_text(self) -> str:
        check_initial_weights(self.config)
        return to_yaml(with_absolute_paths(self.config))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
