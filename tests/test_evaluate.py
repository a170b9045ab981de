"""`dcdist evaluate`: real small runs on digits, measured from their folders alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcdist.cli import main
from dcdist.errors import UsageError
from dcdist.evaluate import evaluate
from dcdist.evaluate.measured import Options
from dcdist.evaluation import published
from dcdist.evaluation.feature_sets import TRAINED
from dcdist.metrics.partition_scores import hungarian_accuracy, majority_purity, nmi
from dcdist.stored_run import read_run
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config

NUM_TRAIN, NUM_TEST = 150, 60
ONLY_TRAINED = Options(feature_sets=(TRAINED,))


@pytest.fixture(scope="module")
def split_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files, a folder a class below a folder a split."""
    root = tmp_path_factory.mktemp("split-digits")
    data = load_digits()
    for index in range(NUM_TRAIN + NUM_TEST):
        folder = root / ("train" if index < NUM_TRAIN else "test") / str(data.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 255 / 16).round().astype("uint8")).save(folder / f"{index:04d}.png")
    return root


def values_of(root: Path, run_directory: Path | str, **sections: Any) -> dict[str, Any]:
    values = experiment(root, run_directory)
    values["data"] |= {"split": "train", "heldout_split": "test"}
    values["evaluation"] = {"summary": False, "whitening_dimensions": 8}
    return values | sections


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, split_digits: Path) -> Path:
    """The folder of a run that was done."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(write_config(folder / "config.yaml", values_of(split_digits, folder / "run"))) == [0]
    return folder / "run"


def copy_of(run_directory: Path, target: Path) -> Path:
    shutil.copytree(run_directory, target)
    return target


def ends(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as error:  # a command that is done may return or exit
        return int(error.code or 0)
    return 0


def clusters_of(run_directory: Path, stage: str) -> np.ndarray[Any, Any]:
    return np.asarray(pq.read_table(run_directory / "assignments" / f"{stage}-final.parquet")["cluster"].to_numpy())


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_runs_own_clusters_are_those_that_it_wrote(split_digits: Path, tmp_path: Path, num_processes: int) -> None:
    folder = tmp_path / "run"
    config = write_config(tmp_path / "config.yaml", values_of(split_digits, folder))
    assert run(config, num_processes=num_processes) == [0] * num_processes
    (row,) = evaluate(str(folder), ("clusters",), ONLY_TRAINED)["clusters"]["rows"]
    (final,) = row["final"]["seeds"]
    assert final["agreement_with_run"] == 1.0
    recorded = clusters_of(folder, "deepcluster")
    labels = pq.read_table(folder / "keys.parquet")["label"].to_numpy()
    table = np.zeros((3, 10), int)
    np.add.at(table, (recorded, labels), 1)
    assert final["table"] == table.tolist()
    assert final["train"]["sizes"] == np.bincount(recorded, minlength=3).tolist()
    assert final["train"]["nmi"] == nmi(recorded, labels)
    assert final["train"]["accuracy"] == hungarian_accuracy(recorded, labels)
    assert final["train"]["purity"] == majority_purity(recorded, labels)
    assert sum(final["heldout"]["sizes"]) == NUM_TEST
    assert np.sum(final["heldout_table"]) == NUM_TEST
    assert final["heldout"]["by_train_naming"] <= final["heldout"]["by_best_naming"] == final["heldout"]["accuracy"]


def test_a_report_says_what_was_measured_and_how(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run")
    report = evaluate(str(folder), ("knn",), Options(neighbors=(5, 140, 1000)))["knn"]
    assert json.loads((folder / "evaluations" / "knn-0001.json").read_text()) == report
    assert [row["name"] for row in report["rows"]] == ["raw pixels", "untrained network", "trained network"]
    assert all(list(row["top1"]) == ["5", "140"] for row in report["rows"]), "1000 do not fit"
    last = sorted(path.name for path in (folder / "checkpoints").glob("*-final.*"))[-1]
    assert (report["checkpoint"], report["stage"], report["epoch"]) == (last, "deepcluster", 3)
    assert report["data"]["of_the_run"]
    assert (report["data"]["split"], report["data"]["num_images"]) == ("train", NUM_TRAIN)
    assert (report["heldout"]["split"], report["heldout"]["num_labelled"]) == ("test", NUM_TEST)
    assert report["protocol"]["temperature"] == 0.07
    evaluate(str(folder), ("knn",), ONLY_TRAINED)
    assert sorted(path.name for path in folder.glob("evaluations/knn*")) == ["knn-0001.json", "knn-0002.json"]


def test_several_kinds_share_a_pass_and_agree_with_the_summary(split_digits: Path, tmp_path: Path) -> None:
    """At run.seed=0 the summary's seeds are the evaluation's: what both measure is the same to the last digit."""
    evaluation = {"summary": True, "whitening_dimensions": 8}
    values = values_of(split_digits, tmp_path / "run", evaluation=evaluation)
    values["run"]["seed"] = 0
    assert run(write_config(tmp_path / "config.yaml", values)) == [0]
    summary = json.loads((tmp_path / "run" / "evaluations" / "summary-0001.json").read_text())
    reports = evaluate(str(tmp_path / "run"), ("knn", "linear", "clusters"), Options(neighbors=(20,)))
    for number, row in enumerate(summary["rows"]):
        assert reports["knn"]["rows"][number]["top1"]["20"] == row["knn"]
        assert reports["linear"]["rows"][number]["seeds"][0]["top1"] == row["linear"]
        for readout in ("plain", "whitened", "ward"):
            scores = reports["clusters"]["rows"][number][readout]["scores"]["train"]
            assert scores["nmi"]["mean"] == row[readout]["nmi"]
            assert scores["accuracy"]["mean"] == row[readout]["accuracy"]
    final = reports["clusters"]["rows"][-1]["final"]["seeds"][0]
    assert {**summary["clusters"], "agreement_with_run": 1.0} == final


def test_a_classifier_reads_out(split_digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    length = {**experiment(split_digits, "")["train"], "num_epochs": 1}
    stages = [{"name": "pretext", "method": "simclr"}, {"name": "semantic", "method": "scan"}]
    others = {"scan": {"num_clusters": 10, "num_neighbors": 3}, "stages": stages, "train": length}
    config = write_config(tmp_path / "config.yaml", values_of(split_digits, tmp_path / "run", **others))
    assert run(config) == [0]
    report = evaluate(str(tmp_path / "run"), ("clusters",), ONLY_TRAINED)["clusters"]
    (final,) = report["rows"][0]["final"]["seeds"]
    assert report["stage"] == "semantic"
    assert (final["num_clusters"], final["agreement_with_run"]) == (10, 1.0)
    assert final["train"]["sizes"] == np.bincount(clusters_of(tmp_path / "run", "semantic"), minlength=10).tolist()

    options = replace(ONLY_TRAINED, stage="pretext")  # as it was before: k-means of the other weights
    report = evaluate(str(tmp_path / "run"), ("clusters",), options)["clusters"]
    (before,) = report["rows"][0]["final"]["seeds"]
    assert (report["stage"], report["stage_done"], report["step"]) == ("pretext", True, 10)
    assert before["agreement_with_run"] == 1.0
    assert before["train"]["sizes"] == np.bincount(clusters_of(tmp_path / "run", "pretext")).tolist()
    (end,) = (folder for folder in (tmp_path / "run/checkpoints").glob("*-final.*") if "-00000010-" in folder.name)
    (end / "COMMIT.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match="no checkpoint of the end of stage pretext"):
        read_run(str(tmp_path / "run"), "pretext")
    assert f"checkpoint {end.name} is damaged and passed over" in caplog.text
    with pytest.raises(UsageError, match="no stage 'semantics': its stages are pretext, semantic"):
        read_run(str(tmp_path / "run"), "semantics")


def test_a_running_run_is_read_at_its_newest_checkpoint(
    split_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", values_of(split_digits, tmp_path / "run"))
    assert run(config, DCDIST_FAULT="train:step:9:*:SIGUSR2") == [75]
    assert ends(["evaluate", "clusters", str(tmp_path / "run"), "--seeds", "1", "--no-baselines"]) == 0
    printed = capsys.readouterr().out
    assert "the run has no final clustering yet: stage deepcluster has not ended" in printed
    report = json.loads((tmp_path / "run" / "evaluations" / "clusters-0001.json").read_text())
    assert (report["step"], report["stage_done"]) == (9, False)
    assert "final" not in report["rows"][0]
    with pytest.raises(UsageError, match="no checkpoint of the end of stage deepcluster: it has not ended yet"):
        read_run(str(tmp_path / "run"), "deepcluster")


def test_a_damaged_checkpoint_is_passed_over(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = copy_of(finished, tmp_path / "run")
    last = sorted((folder / "checkpoints").glob("*-final.*"))[-1]
    before = read_run(str(folder))
    (last / "method.safetensors").write_bytes(b"cut off")
    found = read_run(str(folder))
    assert before.checkpoint.kind == "final"
    assert found.checkpoint.kind == "train"
    assert found.readout is None
    assert f"checkpoint {last.name} is damaged and passed over" in caplog.text
    for name, tensor in before.backbone.state_dict().items():
        assert torch.equal(found.backbone.state_dict()[name], tensor), "training had ended before"


def test_a_run_behind_a_url(finished: Path, s3_server: str) -> None:  # noqa: ARG001
    fsspec.filesystem("s3").put(str(finished), "bucket/run", recursive=True)
    remote = evaluate("s3://bucket/run", ("knn", "clusters"), ONLY_TRAINED)
    local = evaluate(str(finished), ("knn", "clusters"), ONLY_TRAINED)
    for kind in ("knn", "clusters"):
        assert remote[kind]["rows"] == local[kind]["rows"]
    assert fsspec.filesystem("s3").exists("bucket/run/evaluations/clusters-0001.json")


def test_other_data_and_splits(finished: Path, split_digits: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run")
    moved = copy_of(split_digits, tmp_path / "moved")
    here = evaluate(str(folder), ("knn",), ONLY_TRAINED)["knn"]
    there = evaluate(str(folder), ("knn",), Options(data=str(moved), feature_sets=(TRAINED,)))["knn"]
    assert there["rows"] == here["rows"]
    assert there["data"]["of_the_run"]
    swapped = Options(split="test", heldout_split="train", feature_sets=(TRAINED,))
    other = evaluate(str(folder), ("clusters",), swapped)["clusters"]
    assert not other["data"]["of_the_run"]
    assert sum(other["rows"][0]["final"]["seeds"][0]["train"]["sizes"]) == NUM_TEST
    assert other["rows"][0]["final"]["seeds"][0]["agreement_with_run"] is None
    alone = Options(heldout_split="none", neighbors=(149, 150), feature_sets=(TRAINED,))
    assert list(evaluate(str(folder), ("knn",), alone)["knn"]["rows"][0]["top1"]) == ["149"], "each by the others"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("linear", ["--heldout-split", "none"], "evaluate linear needs images that were kept out of training"),
        ("knn", ["--data", "FLAT", "--split", "none", "--heldout-split", "none"], "has no labels, and features are"),
        ("knn", ["--split", "nowhere"], "nowhere"),
        ("knn", ["--split", "test"], "split 'test' cannot teach and be held out: name another by --split or"),
        ("knn", ["--neighbors", "many"], "--neighbors='many' is no list of numbers"),
        ("knn", ["--neighbors", "500"], "500 nearest neighbours cannot vote: there are 150 labelled images"),
        ("clusters", ["--device", "tpu"], "--device='tpu' is unknown: auto, cpu or cuda"),
        ("clusters", ["--data", "gone"], "gone does not exist"),
    ],
)
def test_what_is_missing_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, options: list[str], message: str
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "0.png")
    options = [str(flat) if option == "FLAT" else option for option in options]
    assert ends(["evaluate", kind, str(finished), *options]) == 2
    assert message in capsys.readouterr().err


def test_no_run_and_no_checkpoint_are_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["evaluate", "knn", str(tmp_path / "nothing")]) == 2
    assert "has no config.yaml: is this a run's folder" in capsys.readouterr().err
    folder = copy_of(finished, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    assert ends(["evaluate", "knn", str(folder)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_tables_and_json(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(copy_of(finished, tmp_path / "run"))
    assert ends(["evaluate", "knn", folder, "--neighbors", "10,20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["kNN", "k=10", "k=20"]
    assert [line[: len("untrained network")].strip() for line in lines[4:7]] == [
        "raw pixels",
        "untrained network",
        "trained network",
    ]
    assert ends(["evaluate", "linear", folder, "--seeds", "2", "--no-baselines", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["rows"]
    first, second = (seed["top1"] for seed in row["seeds"])
    assert row["top1"]["mean"] == pytest.approx((first + second) / 2)
    assert row["top1"]["deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    assert ends(["evaluate", "clusters", folder, "--seeds", "1", "--no-baselines"]) == 0
    printed = capsys.readouterr().out
    assert "final clusters: 3, cluster x class on the training images" in printed
    assert "trained network, the run's own" in printed
    assert "trained network, whitened, k-means" in printed
    heldout = printed[printed.index("\nheld-out images ") :].splitlines()
    (published,) = [line for line in heldout if line.startswith("SCAN, on CIFAR-10 ")]
    columns = ["K", "NMI", "AMI", "ARI", "ACC", "best", "purity"]
    assert heldout[1].split() == ["held-out", "images", *columns]
    assert published.split()[-7:] == ["10", "0.797", "-", "0.772", "-", "0.883", "-"]
    assert "student project" not in printed  # of two classes


def test_linear_classifiers_on_layers(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All layers of three networks by two processes, as by one; each layer as it comes out alone."""
    folder = copy_of(finished, tmp_path / "run")
    command = ["evaluate", "linear", str(folder), "--preset", "goyal-places", "--epochs", "3", "--batch-size", "64"]
    assert ends([*command, "--seeds", "2", "--num-processes", "2", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    rows = {(row["name"], row["layer"]): row for row in report["rows"]}
    networks = ["trained network", "untrained network, with Sobel", "untrained network, without Sobel"]
    assert list(rows) == [(name, f"conv{number}") for name in networks for number in (1, 2, 3, 4)]
    trained = [rows[networks[0], f"conv{number}"]["top1"]["mean"] for number in (1, 2, 3, 4)]
    assert max(trained) > 0.3
    assert all(row["top5"]["mean"] >= row["top1"]["mean"] for row in report["rows"])
    assert (report["protocol"]["num_epochs"], report["protocol"]["num_processes"]) == (3, 2)
    assert report["protocol"]["pooling"]["conv1"] == [8, 8, 8]
    assert json.loads((folder / "evaluations" / "linear-0001.json").read_text()) == report
    alone = [*command, "--layers", "conv2", "--no-baselines", "--num-processes", "1", "--json"]
    assert ends(alone) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert row["top1"]["mean"] == pytest.approx(rows[networks[0], "conv2"]["seeds"][0]["top1"], abs=0.02)
    assert row["top1"]["deviation"] is None


def test_a_split_without_labels_is_refused(
    finished: Path, split_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not scored as 0 after all has been trained."""
    rows = [
        {"image": path.read_bytes(), "label": 0 if split == "train" else None, "split": split}
        for split in ("train", "test")
        for path in sorted((split_digits / split).rglob("*.png"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    folder = str(copy_of(finished, tmp_path / "run"))
    command = ["evaluate", "linear", folder, "--preset", "swav", "--data", str(tmp_path / "images.parquet")]
    assert ends(command) == 2
    assert "images.parquet, split test has no labels" in capsys.readouterr().err


def test_published_figures_are_of_the_same_protocol() -> None:
    assert {row["data"] for row in published.linear("alexnet", "deepcluster")} == {"ImageNet", "Places205"}
    assert published.linear("alexnet", "goyal-imagenet") == []
    assert [row["top1"] for row in published.linear("resnet18", "swav")] == [{"output": 0.889}, {"output": 0.892}]
    assert published.footnotes(published.linear("alexnet", "deepcluster")) == ["* as remembered, not looked up again"]


def test_linear_classifiers_from_a_cache_by_ten_crops(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, cache = copy_of(finished, tmp_path / "run"), tmp_path / "cache"
    command = ["evaluate", "linear", str(folder), "--preset", "swav", "--layers", "conv4,output", "--epochs", "2"]
    command += ["--batch-size", "128", "--cache", str(cache), "--ten-crop", "--mlp", "--num-processes", "1"]
    command += ["--no-baselines"]
    assert ends(command) == 0
    printed = capfd.readouterr().out
    files = sorted(path.name for path in cache.iterdir())
    assert len(files) == 2 * 2
    assert ends(command) == 0
    assert capfd.readouterr().out == printed
    assert sorted(path.name for path in cache.iterdir()) == files
    header = next(line for line in printed.splitlines() if line.startswith("top-1"))
    assert header.split() == ["top-1", "conv4", "output", "conv4,", "perceptron"]
    assert "2 epochs of SGD on central crops of the training images,\nscored by ten crops" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "simclr"], "--preset='simclr' is unknown: quick, deepcluster, deepcluster-vgg16, goyal-imagenet"),
        (["--layers", "conv1"], "--layers means nothing to --preset=quick"),
        (["--preset", "swav", "--layers", "conv1,conv7"], "the network has no layer 'conv7'; it has conv1, conv2"),
        (["--preset", "swav", "--heldout-split", "none"], "evaluate linear needs images that were kept out"),
        (["--preset", "swav", "--learning-rate", "1e30"], "set a lower learning rate than 1e+30"),
        (["--preset", "swav", "--cache", "/dev/null"], "/dev/null"),
    ],
)
def test_wrong_use_of_linear_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    folder = str(copy_of(finished, tmp_path / "run"))
    assert ends(["evaluate", "linear", folder, *options]) in (1, 2)
    assert message in capsys.readouterr().err
