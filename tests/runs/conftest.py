"""A small experiment on real digits, and its undisturbed result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.runs.processes import final_state, run, write_config

NUM_IMAGES = 100


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 digits as files, a folder a class."""
    root = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for index in range(NUM_IMAGES):
        folder = root / str(data.target[index])
        folder.mkdir(exist_ok=True)
        Image.fromarray((data.images[index] * 255 / 16).round().astype("uint8")).save(folder / f"{index:04d}.png")
    return root


def experiment(root: Path, run_directory: Path | str) -> dict[str, Any]:
    """Three epochs of seven steps of two microbatches, a reassignment each, batch normalisation, augmentation."""
    return {
        "run": {"dir": str(run_directory), "seed": 5},
        "data": {"root": str(root), "num_workers": 0},
        "views": {"image_size": 16, "resize": 16, "scale": [0.5, 1.0], "rotation_degrees": 10.0},
        "model": {"name": "small_convnet", "width": 0.25, "sobel": True},
        "features": {"pca_dimensions": 8, "batch_size": 32},
        "clustering": {"num_clusters": 6, "num_iterations": 5},
        "readout": {"merge_to": 3},
        "train": {
            "num_epochs": 3,
            "batch_size": 16,
            "microbatch_size": 8,
            "optimizer": "adamw",
            "learning_rate": 0.001,
            "precision": "fp32",
        },
        "checkpoint": {"every_num_steps": 2},
        "launch": {"device": "cpu", "join_timeout_seconds": 30},
        "metrics": {"every_num_steps": 3, "tensorboard": False, "progress": False},
        "evaluation": {"summary": False},
    }


@pytest.fixture
def config(tmp_path: Path, digits_folder: Path) -> Path:
    """The experiment as a file, its run in tmp_path/run."""
    return write_config(tmp_path / "config.yaml", experiment(digits_folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> dict[int, dict[str, Any]]:
    """What the experiment ends with when nothing disturbs it, by number of processes."""
    states = {}
    for num_processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"undisturbed-{num_processes}")
        file = write_config(folder / "config.yaml", experiment(digits_folder, folder / "run"))
        assert run(file, num_processes=num_processes) == [0] * num_processes
        states[num_processes] = final_state(folder / "run")
    return states
