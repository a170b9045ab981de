"""States to save, attempts that save them, and processes that are killed while they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dcdist.commits import Commit
from dcdist.distributed.collectives import Collectives
from dcdist.engine.checkpoint import Checkpointer
from dcdist.engine.restore import Stateful
from dcdist.errors import PeerLost, StopRequested
from dcdist.run_directory import Attempt, RunDirectory

FORKS = multiprocessing.get_context("forkserver")  # imports torch once for all processes
FORKS.set_forkserver_preload(["dcdist.engine.checkpoint"])


class Holder:
    """A state that is what it was given."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state: Any = state

    def state_dict(self) -> Mapping[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.state = state


def state_at(step: int) -> dict[str, Holder]:
    """Two states that tell the step in every value."""
    model = {"weight": torch.full((300, 7), float(step)), "bias": torch.full((5,), -float(step))}
    return {"model": Holder(model), "progress": Holder({"step": step, "stage": "main", "loss": 0.5 * step})}


def new_checkpointer(url: str, collectives: Collectives | None = None, keep: int = 2) -> Checkpointer:
    """Of a new attempt on all ranks, which has not begun."""
    collectives = collectives or Collectives()
    run = RunDirectory(url)
    attempt = Attempt(run, collectives.on_main(lambda: run.begin_attempt({}).number))
    return Checkpointer(run, attempt, collectives, "digest", keep)


def load(checkpointer: Checkpointer, states: Mapping[str, Stateful]) -> Commit | None:
    """Begins; each state takes over what the chosen checkpoint holds. Returns its commit."""
    stored = checkpointer.begin()
    if stored is None:
        return None
    with stored:
        stored.load_into(states)
        return stored.commit


def begin(url: str, collectives: Collectives | None = None, keep: int = 2) -> tuple[Checkpointer, int | None]:
    """A new attempt on all ranks: its checkpointer, and the step that it goes on from (checked in every value)."""
    checkpointer = new_checkpointer(url, collectives, keep)
    states = {"model": Holder(), "progress": Holder()}
    commit = load(checkpointer, states)
    if commit is None:
        return checkpointer, None
    step = commit.name.step
    for name, expected in state_at(step).items():
        found = states[name].state
        assert found.keys() == expected.state.keys()
        for key, value in expected.state.items():
            assert torch.equal(found[key], value) if torch.is_tensor(value) else found[key] == value
    return checkpointer, step


def save(checkpointer: Checkpointer, step: int, kind: Any = "train") -> str:
    """Commits the state of this step."""
    return str(checkpointer.save(step, kind, state_at(step), {"stage": "main", "epoch": step // 10}))


def folders(url: str) -> list[str]:
    """Names in RUN/checkpoints."""
    return RunDirectory(url).storage.list("checkpoints")


def train(url: str, steps: range, collectives: Collectives | None = None) -> None:
    """An attempt that saves at each of these steps."""
    checkpointer, _ = begin(url, collectives)
    for step in steps:
        save(checkpointer, step)


def train_together(collectives: Collectives, url: str, steps: range) -> None:
    """The same, on one of several ranks."""
    train(url, steps, collectives)


def start(function: Callable[..., None], *args: Any, fault: str = "") -> BaseProcess:
    """A process that runs the function, under a fault; it exits with 3 or 75 where the function raises what says so."""
    environment = {**os.environ, "DCDIST_FAULT": fault} if fault else dict(os.environ)
    process = FORKS.Process(target=_run, args=(environment, function, args))
    process.start()
    return process


def _run(environment: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*args)
    except (StopRequested, PeerLost) as error:
        os._exit(error.exit_code)


def run_ranks(function: Callable[..., None], world_size: int, *args: Any, fault: str = "") -> list[int | None]:
    """Exit codes of processes that run `function(collectives, *args)` together, under a fault."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            start(_on_rank, f"{folder}/store", rank, world_size, function, args, fault=fault)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.join()
    return [process.exitcode for process in ranks]


def _on_rank(store: str, rank: int, world_size: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ["RANK"] = str(rank)
    timeout = timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timeout)
    function(Collectives(rank, world_size), *args)


def wait_until_stopped(process: BaseProcess) -> None:
    """Returns when the process has received SIGSTOP."""
    assert process.pid is not None
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert process.exitcode is None, f"ended with {process.exitcode} instead of being stopped"


def resume(process: BaseProcess) -> None:
    """Lets a stopped process run on to its end."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    process.join()
