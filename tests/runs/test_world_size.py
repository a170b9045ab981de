"""How many processes share a run changes neither what it does nor, beyond rounding, what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcdist.metrics.jsonl import read_metrics
from dcdist.storage import open_storage
from tests.runs.conftest import experiment
from tests.runs.observation import RecordFirstRows, RecordSteps, first_rows, trained_samples
from tests.runs.processes import final_state, run_to_message, start_run, write_config

NUM_EPOCHS, NUM_STEPS = 3, 15


def three_microbatches(root: Path, folder: Path) -> Path:
    """The experiment with steps that three processes can share: 100 images in steps of 24, the last one filled up."""
    values = experiment(root, folder / "run")
    values["train"] |= {"batch_size": 24, "microbatch_size": 8}
    values["metrics"]["every_num_steps"] = 1
    values["checkpoint"]["every_num_steps"] = None
    return write_config(folder / "config.yaml", values)


@dataclass(frozen=True)
class Outcome:
    rows: np.ndarray[Any, Any]
    samples: dict[int, list[int]]
    losses: list[float]
    state: dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> dict[int, Outcome]:
    """The same run on 1, 2 and 3 processes."""
    results = {}
    for world_size in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"world-size-{world_size}")
        config = three_microbatches(digits_folder, folder)
        running = start_run(config, num_processes=world_size, prepare=RecordFirstRows(folder))
        assert running.wait() == [0] * world_size, running.errors()
        records = read_metrics(open_storage(folder / "run"))
        losses = [record["loss"] for record in records if record["kind"] == "step"]
        results[world_size] = Outcome(
            first_rows(folder), trained_samples(folder)[0], losses, final_state(folder / "run")
        )
    return results


@pytest.mark.parametrize("world_size", [2, 3])
def test_features_agree_and_equal_ones_are_assigned_equally(outcomes: dict[int, Outcome], world_size: int) -> None:
    one, many = outcomes[1], outcomes[world_size]
    assert one.rows.shape == (100, 8)
    errors = np.linalg.norm(many.rows - one.rows, axis=1) / np.linalg.norm(one.rows, axis=1)
    assert errors.max() < 1e-5
    for epoch in range(NUM_EPOCHS):
        name = f"deepcluster-{epoch}/cluster"
        assert np.array_equal(many.state[name], one.state[name])


@pytest.mark.parametrize("world_size", [2, 3])
def test_order_is_equal(outcomes: dict[int, Outcome], world_size: int) -> None:
    one, many = outcomes[1].samples, outcomes[world_size].samples
    assert list(one) == list(range(NUM_STEPS))
    assert all(len(ids) == 24 for ids in one.values())
    assert len({tuple(ids) for ids in one.values()}) == NUM_STEPS, "each step has an order of its own"
    assert many == one


@pytest.mark.parametrize("world_size", [2, 3])
def test_losses_and_weights_agree(outcomes: dict[int, Outcome], world_size: int) -> None:
    one, many = outcomes[1], outcomes[world_size]
    assert len(one.losses) == NUM_STEPS
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
    names = [name for name, value in one.state.items() if name.startswith("method/") and value.dtype == np.float32]
    assert any("running_var" in name for name in names)
    for name in names:
        # Measured: at most 8e-7 after all 15 steps of AdamW, which lets rounding of small gradients through.
        error = np.linalg.norm(many.state[name] - one.state[name]) / np.linalg.norm(one.state[name])
        assert error < 1e-5, name
    for name, value in one.state.items():
        if name.endswith("num_batches_tracked"):
            assert many.state[name] == value == NUM_STEPS, "one pass a step, however many microbatches it has"


def test_every_planned_sample_is_trained_once_when_the_number_of_processes_changes(
    outcomes: dict[int, Outcome], tmp_path: Path, digits_folder: Path
) -> None:
    config = three_microbatches(digits_folder, tmp_path)
    record = RecordSteps(tmp_path)
    preemptions = [(2, "train:step:2:0:SIGTERM"), (1, "train:step:1:0:SIGUSR2"), (3, "train:step:6:2:SIGTERM")]
    for world_size, fault in preemptions:
        running = start_run(config, num_processes=world_size, environment={"DCDIST_FAULT": fault}, prepare=record)
        assert running.wait() == [75] * world_size, running.errors()
    running = start_run(config, num_processes=2, prepare=record)
    assert running.wait() == [0, 0], running.errors()

    samples, world_sizes = trained_samples(tmp_path)
    assert [world_sizes[step] for step in range(NUM_STEPS)] == [2] * 2 + [1] + [3] * 6 + [2] * 6
    assert samples == outcomes[1].samples
    state = final_state(tmp_path / "run")
    for name, value in outcomes[1].state.items():
        if name.startswith("method/") and value.dtype == np.float32:
            assert np.linalg.norm(state[name] - value) < 1e-5 * np.linalg.norm(value), name


def test_more_processes_than_microbatches_are_refused(config: Path, tmp_path: Path) -> None:
    code, message = run_to_message(config, num_processes=3)
    assert code == 2
    assert message == (
        "dcdist: 3 processes cannot share a step of 2 microbatches (train.batch_size=16 / train.microbatch_size=8): "
        "use at most 2 processes, or a smaller train.microbatch_size\n"
    )
    assert not (tmp_path / "run").exists(), "nothing was started"
