"""What a finished run is good for, all of it, on AlexNet and photographs of Imagenette with tiny settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dcdist
from dcdist.cli import main
from tests.configs_shrunken import shrunken
from tests.runs.processes import run, write_config

CONFIG = Path(__file__).parents[1] / "configs" / "simclr_imagenette.yaml"
NUM_TRAIN, NUM_TEST = 60, 20
NETWORKS = ["trained network", "untrained network, with Sobel", "untrained network, without Sobel"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    table = pq.read_table(shared_data / "imagenette224_5k.parquet", columns=["image", "label", "label_name"])
    table = table.slice(0, NUM_TRAIN + NUM_TEST)
    path = tmp_path_factory.mktemp("imagenette") / "images.parquet"
    pq.write_table(table.append_column("split", pa.array(["train"] * NUM_TRAIN + ["test"] * NUM_TEST)), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    values = shrunken(CONFIG, photographs, folder / "run")
    values["data"]["cache_directory"] = str(folder / "cache")
    values["readout"] |= {"num_clusters": 10, "pca_dimensions": 8}
    assert run(write_config(folder / "config.yaml", values)) == [0]
    return folder / "run"


def dcdist_does(*arguments: object) -> None:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        if error.code:
            raise AssertionError(f"exit code {error.code}") from error


def report_of(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    dcdist_does("evaluate", *arguments, "--json")
    report: dict[str, Any] = json.loads(capfd.readouterr().out)
    return report


def test_classifiers_on_the_five_convolutions(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = report_of(
        capfd, "linear", finished, "--preset", "deepcluster", "--epochs", 1, "--mlp", "--ten-crop", "--num-processes", 1
    )
    layers = [f"conv{number}" for number in range(1, 6)]
    expected = {(name, layer) for name in NETWORKS for layer in [*layers, "conv5, perceptron"]}
    assert {(row["name"], row["layer"]) for row in report["rows"]} == expected
    assert all(0 <= row["top1"]["mean"] <= row["top5"]["mean"] <= 1 for row in report["rows"])
    assert report["protocol"]["test_crops"] == 10
    assert {row["data"] for row in report["published"]} == {"ImageNet", "Places205"}


def test_neighbours_and_clusters(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    knn = report_of(capfd, "knn", finished, "--neighbors", "5,20")
    assert [row["name"] for row in knn["rows"]] == ["raw pixels", "untrained network", "trained network"]
    clusters = report_of(capfd, "clusters", finished, "--seeds", 2, "--no-baselines")
    (final,) = clusters["rows"][-1]["final"]["seeds"]
    assert final["agreement_with_run"] == 1.0
    assert np.sum(final["table"]) == NUM_TRAIN
    assert np.sum(final["heldout_confusion"]) == NUM_TEST
    assert {row["data"] for row in clusters["published"]} == {"CIFAR-10", "STL-10"}


def test_what_others_take_from_it(finished: Path, photographs: Path, tmp_path: Path) -> None:
    """The clusters, the backbone as a file, the module and its transform; all of the same images."""
    out = tmp_path / "clusters.parquet"
    dcdist_does("assign", finished, photographs, "--split", "train", "--out", out)
    recorded = pq.read_table(finished / "assignments" / "simclr-final.parquet")
    for name in ("cluster", "distance"):
        assert np.array_equal(pq.read_table(out)[name].to_numpy(), recorded[name].to_numpy())
    dcdist_does("export", finished, "--out", tmp_path / "backbone.safetensors")
    card = json.loads((tmp_path / "backbone.json").read_text())
    assert card["architecture"]["name"] == "alexnet"
    module, transform = dcdist.load(str(finished))
    (tmp_path / "one.jpg").write_bytes(pq.read_table(photographs)["image"][0].as_py())
    with torch.no_grad():
        assert module(transform(str(tmp_path / "one.jpg")).unsqueeze(0)).shape == (1, 4096)


def test_objects_and_the_report_of_all(
    finished: Path, shared_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = ("--data", shared_data / "voc2007_excerpt.tar", "--iterations", 1, "--batch-size", 2, "--no-baselines")
    classification = report_of(capfd, "voc-classification", finished, *few, "--crops", 1, "--train", "fc6-8")
    assert classification["protocol"]["trained"]["fc6-8"].startswith("the fully connected layers")
    segmentation = report_of(capfd, "voc-segmentation", finished, *few, "--image-size", 64, "--train", "all")
    assert 0 <= segmentation["rows"][0]["modes"]["all"]["scores"]["mean_iou"]["mean"] <= 1
    detection = report_of(capfd, "voc-detection", finished, *few, "--image-size", 96, "--train", "fc6-8")
    assert detection["protocol"]["network"].endswith("then the network's fully connected layers")
    dcdist_does("report", finished, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    kinds = {path.name.rpartition("-")[0] for path in (finished / "evaluations").iterdir()}
    assert kinds >= {"voc-classification", "voc-segmentation", "voc-detection"}
    assert "http://" not in page.replace("http://www.w3.org", "")
