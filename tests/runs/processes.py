"""Starts real runs fast: each rank is a fork of a server that has imported everything already."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

_SERVER: Any = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class RunningRun:
    """The ranks of a run that was started."""

    processes: Sequence[Any]
    errors_file: Path  # what all ranks write to stderr

    def errors(self) -> str:
        return self.errors_file.read_text()

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes in rank order (negative: the signal); a rank that does not end in time is killed and fails."""
        for process in self.processes:
            process.join(seconds)
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            process.kill()
            process.join()
        assert not late, f"ranks {late} did not end within {seconds} s"
        return [process.exitcode for process in self.processes]

    def signal(self, number: int, rank: int | None = None) -> None:
        for process in self.processes if rank is None else [self.processes[rank]]:
            os.kill(process.pid, number)

    def wait_until_stopped(self, rank: int = 0) -> None:
        """Returns when SIGSTOP has stopped the rank."""
        deadline = time.monotonic() + 60
        status = Path(f"/proc/{self.processes[rank].pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, f"rank {rank} was not stopped within 60 s"
            time.sleep(0.005)


def start_run(
    config: Path,
    overrides: Sequence[str] = (),
    num_processes: int = 1,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> RunningRun:
    """`dcdist train CONFIG OVERRIDES...` on so many ranks, each one thread.

    `prepare` (it pickles) is called in each rank first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    handle, errors_file = tempfile.mkstemp(prefix="stderr-", dir=config.parent)
    os.close(handle)
    processes = []
    for rank in range(num_processes):
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        arguments = ["train", str(config), "launch.threads_per_process=1", *overrides]
        process = _SERVER.Process(
            target=_rank, args=(arguments, {**place, **(environment or {})}, errors_file, prepare)
        )
        process.start()
        processes.append(process)
    return RunningRun(processes, Path(errors_file))


def _rank(
    arguments: list[str], environment: dict[str, str], errors_file: str, prepare: Callable[[], None] | None
) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the server's children begin with signals blocked
    os.environ.update(environment)
    descriptor = os.open(errors_file, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    if prepare is not None:
        prepare()
    from dcdist.cli import main

    sys.argv = ["dcdist", *arguments]
    main()


def run(config: Path, overrides: Sequence[str] = (), num_processes: int = 1, **environment: str) -> list[int]:
    """Starts a run and waits for its exit codes."""
    return start_run(config, overrides, num_processes, environment).wait()


def run_to_message(
    config: Path, overrides: Sequence[str] = (), num_processes: int = 1, prepare: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Starts a run and waits: its exit code, the same on every rank, and its stderr, which shows no traceback."""
    running = start_run(config, overrides, num_processes, prepare=prepare)
    codes = running.wait()
    assert len(set(codes)) == 1, f"{codes}: {running.errors()}"
    assert "Traceback" not in running.errors(), running.errors()
    return codes[0], running.errors()


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def final_state(run_directory: Path) -> dict[str, Any]:
    """Everything that a finished run ends with: weights, optimizer state, clusters, assignments of every epoch."""
    finals = sorted((run_directory / "checkpoints").glob("*-final.*"))
    assert finals, f"{run_directory} has no final checkpoint"
    state: dict[str, Any] = {}
    for file in sorted(finals[-1].glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            state[f"{file.stem}/{name}"] = tensor
    for file in sorted((run_directory / "assignments").glob("*.parquet")):
        table = pq.read_table(file)
        for column in table.column_names:
            state[f"{file.stem}/{column}"] = table[column].to_numpy()
    state["progress"] = json.loads((finals[-1] / "progress.json").read_text())
    return state


def assert_same_state(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert actual[name].dtype == value.dtype
            assert actual[name].tobytes() == value.tobytes(), name
        else:
            assert actual[name] == value, name
