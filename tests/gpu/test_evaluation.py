"""What a finished run is good for comes out on a GPU as on the CPU, and every evaluation that trains runs there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcdist.cli import main
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config
from tests.voc_devkit import make_voc

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, data = tmp_path_factory.mktemp("split-digits"), load_digits()
    for index in range(300):
        folder = root / ("train" if index < 200 else "test") / str(data.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 255 / 16).round().astype("uint8")).save(folder / f"{index:04d}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path) -> str:
    """The folder of a run that was done on the CPU."""
    folder = tmp_path_factory.mktemp("finished")
    values = experiment(images, folder / "run")
    values["data"] |= {"split": "train", "heldout_split": "test"}
    values["launch"] = values.get("launch", {}) | {"device": "cpu"}
    assert run(write_config(folder / "config.yaml", values)) == [0]
    return str(folder / "run")


def dcdist(*arguments: object) -> None:
    with contextlib.suppress(SystemExit):  # what a command wrote shows whether it was done
        main([str(argument) for argument in arguments])


def report_of(capsys: pytest.CaptureFixture[str], device: str, kind: str, *arguments: object) -> dict[str, Any]:
    dcdist("evaluate", kind, *arguments, "--device", device, "--json")
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["device"] == device
    return report


def test_assign_finds_the_clusters_of_the_cpu(finished: str, images: Path, tmp_path: Path) -> None:
    found = []
    for device in DEVICES:
        out = tmp_path / f"{device}.parquet"
        dcdist("assign", finished, images, "--split", "train", "--out", out, "--device", device)
        found.append(pq.read_table(out))
    clusters, distances = ([table[name].to_numpy() for table in found] for name in ("cluster", "distance"))
    assert float((clusters[0] == clusters[1]).mean()) >= 0.99
    assert np.allclose(*distances, atol=0.02)


def test_knn_agrees_with_the_cpu(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    on_cpu, on_gpu = (report_of(capsys, device, "knn", finished, "--neighbors", 20) for device in DEVICES)
    for one, other in zip(on_cpu["rows"], on_gpu["rows"], strict=True):
        assert one["top1"]["20"] == pytest.approx(other["top1"]["20"], abs=0.03)  # of 100 images


def test_classifiers_on_layers_agree_with_the_cpu(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (finished, "--preset", "goyal-places", "--epochs", 3, "--batch-size", 64, "--mlp")
    on_cpu, on_gpu = (report_of(capsys, device, "linear", *command) for device in DEVICES)
    for one, other in zip(on_cpu["rows"], on_gpu["rows"], strict=True):
        assert (one["name"], one["layer"]) == (other["name"], other["layer"])
        if not one["layer"].endswith("perceptron"):  # whose dropout draws by the device's own generator
            assert one["top1"]["mean"] == pytest.approx(other["top1"]["mean"], abs=0.1)


@pytest.mark.parametrize(
    ("kind", "score"),
    [("voc-classification", "map"), ("voc-detection", "map"), ("voc-segmentation", "mean_iou")],
)
def test_voc_trains(finished: str, kind: str, score: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--image-size", 48) if kind != "voc-classification" else ()
    report = report_of(
        capsys, "cuda", kind, finished, "--data", make_voc(tmp_path), "--iterations", 3, "--batch-size", 2, *small
    )
    scores = [row["modes"][mode]["scores"][score]["mean"] for row in report["rows"] for mode in report["modes"]]
    assert len(scores) == 4
    assert all(0 <= value <= 1 for value in scores)
