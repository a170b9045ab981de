"""Starts real runs fast: each rank is a fork of a server that has imported everything already."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

_SERVER: Any = multiprocessing.get_context("forkserver")
# torch._dynamo is what the first optimizer imports, for seconds.
_SERVER.set_forkserver_preload(["dcdist.cli", "dcdist.worker", "dcdist.config.load", "torch._dynamo"])


@dataclass(frozen=True)
class RunningRun:
    """The ranks of a run that was started."""

    processes: Sequence[Any]

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


def start_run(
    config: Path, overrides: Sequence[str] = (), num_processes: int = 1, environment: dict[str, str] | None = None
) -> RunningRun:
    """`dcdist train CONFIG OVERRIDES...` on so many ranks, each one thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        process = _SERVER.Process(target=_rank, args=(arguments, {**place, **(environment or {})}))
        process.start()
        processes.append(process)
    return RunningRun(processes)


def _rank(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from dcdist.cli import main

    sys.argv = ["dcdist", *arguments]
    main()


def run(config: Path, overrides: Sequence[str] = (), num_processes: int = 1, **environment: str) -> list[int]:
    """Starts a run and waits for its exit codes."""
    return start_run(config, overrides, num_processes, environment).wait()


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
