"""What runs on the nodes of a Ray cluster: in each of Ray Train's workers a process of dcdist, and who watches them."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from dcdist.errors import ExitCode
from dcdist.launch.local import combined_exit_code, die_with, free_port
from dcdist.run_directory import RunDirectory
from dcdist.verdict import judge_job

POLL_SECONDS = 0.5
# After one process of a group has ended, the others notice (at their next collective), save and end within this.
SURVIVOR_SECONDS = 120.0

_process: subprocess.Popen[bytes] | None = None  # this worker's


class RunAgain(Exception):
    """What a worker raises so that Ray Train starts the group again."""


class _Overseer:
    """Lives beside the driver: knows whether the job is to end, and with what the processes of each group ended."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._has_begun = False
        self._codes: dict[str, dict[int, int]] = {}
        self._verdicts: dict[str, int] = {}

    def stop(self) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping

    def begin(self) -> None:
        self._has_begun = True

    def has_begun(self) -> bool:
        """Whether there ever was a process."""
        return self._has_begun

    def ended(self, group: str, rank: int, return_code: int) -> None:
        self._codes.setdefault(group, {})[rank] = return_code

    def return_codes(self, group: str) -> list[int]:
        return list(self._codes.get(group, {}).values())

    def judge(self, group: str, code: int) -> None:
        self._verdicts[group] = code

    def verdict(self, group: str) -> int | None:
        """What the run's folder says of the group's end, once somebody has asked it."""
        return self._verdicts.get(group)


Overseer = ray.remote(num_cpus=0)(_Overseer)


@dataclass
class Group(TorchConfig):  # type: ignore[misc]
    """Describes the process group in each worker's environment; the workers' own processes join it."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _GroupBackend


class _GroupBackend(Backend):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    share_cuda_visible_devices = True  # LOCAL_RANK chooses among the GPUs of the machine's workers

    def __init__(self) -> None:
        self._num_starts = 0

    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ARG002
        address, port = worker_group.execute_single(0, _address_and_port)
        worker_group.execute(_describe_group, address, port, self._num_starts)
        self._num_starts += 1

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ARG002
        """Also before the group gets another size: the processes save first."""
        stopping = [worker_group.execute_single_async(number, _stop_process) for number in range(len(worker_group))]
        for stopped in stopping:
            with contextlib.suppress(ray.exceptions.RayActorError):  # its node is gone, and the process with it
                ray.get(stopped)


def _address_and_port() -> tuple[str, int]:
    return ray.util.get_node_ip_address(), free_port("")


def _describe_group(address: str, port: int, restart_count: int) -> None:
    context = ray.train.get_context()
    place = {
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "DCDIST_RAY_JOB": ray.get_runtime_context().get_job_id(),
        "DCDIST_RESTART_COUNT": restart_count,
        "DCDIST_STARTED_AT": time.time(),
    }
    os.environ.update({name: str(value) for name, value in place.items()})


def _stop_process() -> None:
    if _process is not None and _process.poll() is None:
        _process.terminate()
        try:
            _process.wait(SURVIVOR_SECONDS)
        except subprocess.TimeoutExpired:
            _process.kill()


def work(task: dict[str, Any]) -> int:
    """What Ray Train calls in each worker: `dcdist train` in a process of its own, to its end.

    Args:
        task: "config" (the experiment, YAML), "run" (its directory), "overseer" (the actor), "threads" (per process).

    Returns:
        The exit code of the whole group, where it is not to be started again.

    Raises:
        RunAgain: it is.
    """
    global _process
    overseer = task["overseer"]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    ray.get(overseer.begin.remote())
    with tempfile.NamedTemporaryFile("w", prefix="dcdist-", suffix=".yaml") as config:
        config.write(task["config"])
        config.flush()
        command = [sys.executable, "-m", "dcdist", "train", config.name]
        environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"])}
        _process = subprocess.Popen(command, env=environment, preexec_fn=functools.partial(die_with, os.getpid()))
        told = False
        while _process.poll() is None:
            if not told and ray.get(overseer.is_stopping.remote()):
                _process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(POLL_SECONDS)
    code = _common_exit_code(overseer, group, rank, world_size, _process.returncode)
    # One that Ray Train is about to end has noticed nothing else: its group is started again in any case.
    if code is ExitCode.RUN_AGAIN and not ray.get(overseer.is_stopping.remote()):
        code = _verdict(overseer, group, rank, task["run"], _process.returncode)
        if code is ExitCode.RUN_AGAIN:
            raise RunAgain(f"process {rank} of {world_size} ended with {_process.returncode}: its group starts again")
    return int(code)


def _verdict(overseer: Any, group: str, rank: int, run: str, return_code: int) -> ExitCode:
    """What the run's folder says, which counts starts that got nowhere; it is asked beside rank 0, once."""
    if rank == 0:
        shell_code = 128 - return_code if return_code < 0 else return_code
        found = judge_job(RunDirectory(run), shell_code)
        if found.code is not ExitCode.RUN_AGAIN:
            print(f"dcdist: not started again: {found.reason}", file=sys.stderr)
        ray.get(overseer.judge.remote(group, int(found.code)))
    deadline = time.monotonic() + SURVIVOR_SECONDS
    while (code := ray.get(overseer.verdict.remote(group))) is None:
        if time.monotonic() > deadline:  # rank 0's machine is gone
            return ExitCode.RUN_AGAIN
        time.sleep(POLL_SECONDS)
    return ExitCode(code)


def _common_exit_code(overseer: Any, group: str, rank: int, world_size: int, return_code: int) -> ExitCode:
    """What the group ended with. One that does not answer in time was lost."""
    ray.get(overseer.ended.remote(group, rank, return_code))
    deadline = time.monotonic() + SURVIVOR_SECONDS
    while True:
        return_codes = ray.get(overseer.return_codes.remote(group))
        if len(return_codes) == world_size:
            return combined_exit_code(return_codes)
        if time.monotonic() > deadline:
            return combined_exit_code([*return_codes, -signal.SIGKILL])
        time.sleep(POLL_SECONDS)
