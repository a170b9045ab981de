"""A finished run of two stages on small colour pictures: a ResNet-18 that sees edges, standardised in the second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdist.export import export
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config

NUM_PICTURES = 40
STAGES = ("first", "second")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and PNGs of different sizes, a folder a class: gradients of colour under noise."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(NUM_PICTURES):
        height, width = generator.integers(36, 70, 2)
        rows, columns = np.mgrid[0:height, 0:width] / 70
        slopes = generator.uniform(-1, 1, (2, 3))
        colours = 0.5 + rows[..., None] * slopes[0] + columns[..., None] * slopes[1]
        values = colours + generator.normal(0, 0.1, (height, width, 3))
        folder = root / ("even", "odd")[index % 2]
        folder.mkdir(exist_ok=True)
        picture = Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))
        picture.save(folder / f"{index:02d}.{'jpg' if index % 3 else 'png'}")
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The run's folder. Its last word is the summary, of the second stage."""
    folder = tmp_path_factory.mktemp("exported")
    values = experiment(pictures, folder / "run")
    values["views"] = {"image_size": 32, "resize": 36}
    values["model"] = {"name": "resnet18", "sobel": True}
    values["train"]["num_epochs"] = 1
    values["evaluation"] = {"summary": True, "whitening_dimensions": 8}
    first, second = STAGES
    values["stages"] = [{"name": first}, {"name": second, "views": {"standardize": True}}]
    assert run(write_config(folder / "config.yaml", values)) == [0]
    return folder / "run"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A folder with backbone.safetensors, backbone.onnx and backbone.json of the run as it is."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in (".safetensors", ".onnx"):
        export(str(finished), str(folder / f"backbone{suffix}"))
    return folder
