"""Processes that are killed while they save, and rows that move between numbers of processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dcdist.distributed.collectives import Collectives
from dcdist.engine.state_files import KeyedRows, StoredRows
from dcdist.run_directory import RunDirectory
from tests.engine.checkpoint_states import (
    Holder,
    begin,
    folders,
    load,
    new_checkpointer,
    run_ranks,
    save,
    start,
    train,
    train_together,
)


def assert_goes_on(url: str, newest: int) -> None:
    """The next attempt begins from this step, and after two saves nothing else is left."""
    checkpointer, step = begin(url)
    assert step == newest
    states = {info.state for info in RunDirectory(url).inventory() if info.name.step <= newest}
    assert states <= {"ok", "uncommitted"}
    for step in (newest + 1, newest + 2):
        save(checkpointer, step)
    attempt = checkpointer._attempt.number
    assert folders(url) == [f"step-{step:08d}-train.{attempt:04d}" for step in (newest + 1, newest + 2)]
    assert begin(url)[1] == newest + 2


@pytest.mark.parametrize(
    ("fault", "newest"),
    [
        ("checkpoint:begin:1", None),
        ("checkpoint:data:1", None),
        ("checkpoint:commit:1", None),
        ("checkpoint:committed:1", 1),
        ("checkpoint:begin:4", 3),
        ("checkpoint:data:4", 3),
        ("checkpoint:commit:4", 3),
        ("checkpoint:committed:4", 4),
        ("checkpoint:prune:1", 3),  # COMMIT.json of step 1 is gone
        ("checkpoint:prune:2", 3),  # all of step 1 is gone
        ("checkpoint:prune:3", 4),
    ],
)
def test_killed_at(fault: str, newest: int | None, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    process = start(train, url, range(1, 7), fault=fault)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if newest is None:
        assert begin(url)[1] is None
        assert folders(url) == []
    else:
        assert_goes_on(url, newest)


def test_removal_begins_with_what_vouches_for_the_rest(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    start(train, url, range(1, 7), fault="checkpoint:prune:1").join()
    assert [info.state for info in RunDirectory(url).inventory()] == ["uncommitted", "ok", "ok"]
    assert (tmp_path / "run/checkpoints/step-00000001-train.0001/model.safetensors").exists()


def test_killed_at_random_instants(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    generator = np.random.default_rng(0)
    newest = 0
    for _ in range(8):
        process = start(train, url, range(newest + 1, 10**6))
        while RunDirectory(url).line()[-1:] == [] or RunDirectory(url).line()[-1].step == newest:
            assert process.exitcode is None
        time.sleep(float(generator.uniform(0, 0.05)))
        process.kill()
        process.join()
        reached = RunDirectory(url).line()[-1].step
        assert reached > newest
        newest = reached
        assert begin(url)[1] == newest
    assert_goes_on(url, newest)


@pytest.mark.parametrize(
    ("fault", "newest"),
    [
        ("checkpoint:begin:3:1", 2),
        ("checkpoint:data:3:0", 2),
        ("checkpoint:data:3:1", 2),
        ("checkpoint:commit:3:0", 2),
        ("checkpoint:committed:3:0", 3),
    ],
)
def test_one_of_two_processes_killed(fault: str, newest: int, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    exit_codes = run_ranks(train_together, 2, url, range(1, 7), fault=fault)
    killed = int(fault.rsplit(":", 1)[1])
    assert (exit_codes[killed], exit_codes[1 - killed]) == (-signal.SIGKILL, 75)
    assert_goes_on(url, newest)


NUM_ROWS = 10


def rows_of(keys: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"feature": torch.stack([keys.double() / 3, keys.double() ** 2], 1), "target": (keys % 4).to(torch.int32)}


class Bank:
    """The rows that fall to this rank, dealt out anew when they are loaded."""

    def __init__(self, collectives: Collectives) -> None:
        start, stop = (NUM_ROWS * (collectives.rank + i) // collectives.world_size for i in range(2))
        self.keys = torch.arange(start, stop).flip(0)
        self.rows: dict[str, torch.Tensor] = {}
        self.found: list[int] = []

    def state_dict(self) -> dict[str, object]:
        return {"name": "bank", "inner": [KeyedRows(self.keys, self.rows)]}

    def load_state_dict(self, state: dict[str, object]) -> None:  # type: ignore[override]
        (stored,) = state["inner"]  # type: ignore[misc]
        assert isinstance(stored, StoredRows)
        self.rows = stored.select(self.keys)
        self.found = sorted(stored.all_keys().tolist())


def deal_out(collectives: Collectives, url: str, step: int) -> None:
    """Loads the bank, or fills it; each row is what its key says; saves it."""
    bank, replicated = Bank(collectives), Holder({"value": torch.tensor(1.5)})
    checkpointer = new_checkpointer(url, collectives)
    commit = load(checkpointer, {"bank": bank, "replicated": replicated})
    if commit is None:
        bank.rows = rows_of(bank.keys)
    else:
        assert bank.found == list(range(NUM_ROWS))
        assert replicated.state["value"] == 1.5
        assert all(torch.equal(bank.rows[name], value) for name, value in rows_of(bank.keys).items())
    checkpointer.save(step, "train", {"bank": bank, "replicated": replicated}, {})


def test_rows_move_between_numbers_of_processes(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    for step, world_size in enumerate((1, 3, 2, 1), start=1):
        assert run_ranks(deal_out, world_size, url, step) == [0] * world_size
        folder = tmp_path / f"run/checkpoints/step-0000000{step}-train.000{step}"
        row_files = sorted(path.name for path in folder.glob("*rows*"))
        assert row_files == [f"bank.rows-0000{rank}.safetensors" for rank in range(world_size)]
    infos = RunDirectory(url).inventory()
    assert [info.state for info in infos] == ["ok", "ok"]
    first, last = (RunDirectory(url).storage.read_bytes(f"{info.name.folder}/bank.json") for info in infos)
    assert first == last
