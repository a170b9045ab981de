"""`dcdist evaluate voc-*`: a small run, real photographs of VOC 2007 in a tar, few steps; what is said about damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcdist.build.run import build_backbone
from dcdist.cli import main
from dcdist.config.schema import ModelSection
from dcdist.data.voc import CLASSES
from dcdist.errors import UsageError
from dcdist.evaluate.voc_classification import _image_size
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config
from tests.voc_devkit import annotation, described, make_voc

EXCERPT = "voc2007_excerpt.tar"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    values = experiment(make_voc(folder) / "VOC2007/JPEGImages", folder / "run")
    values["train"]["num_epochs"] = 1
    assert run(write_config(folder / "config.yaml", values)) == [0]
    return str(folder / "run")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return make_voc(tmp_path)


def ends(*arguments: object) -> int:
    try:
        main(["evaluate", *map(str, arguments)])
    except SystemExit as error:  # a command that is done may return or exit
        return int(error.code or 0)
    return 0


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert ends(*arguments, "--json") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def message_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert ends(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def check_report(report: dict[str, Any], run_directory: str, score: str) -> None:
    """Two networks, two modes, on the excerpt; what is printed was written."""
    written = sorted(Path(run_directory, "evaluations").glob(f"{report['kind']}-*.json"))
    assert json.loads(written[-1].read_text()) == report
    assert report["data"]["root"].endswith(EXCERPT)
    assert [row["name"] for row in report["rows"]] == ["untrained network", "trained network"]
    for row in report["rows"]:
        assert list(row["modes"]) == ["fc6-8", "all"]
        for found in row["modes"].values():
            (seed,) = found["seeds"]
            assert found["scores"][score] == {"mean": seed[score], "deviation": None}
            assert 0 <= seed[score] <= 1


def check_table(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert ends(*arguments) == 0
    captured = capsys.readouterr()
    assert "iteration 1 of 1, loss" in captured.err
    lines = captured.out.splitlines()
    table = [line for line in lines if not line.startswith("/")]  # paths of the test
    assert max(map(len, table)) <= 110
    return table


def test_classification_of_real_photographs(
    finished: str, shared_data: Path, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("voc-classification", finished, "--crops", 1, "--data")
    report = report_of(capsys, *command, shared_data / EXCERPT, "--iterations", 2, "--batch-size", 4)
    check_report(report, finished, "map")
    assert report["data"]["train"] == {"split": "VOC2007/trainval", "num_images": 200}
    assert report["data"]["test"] == {"split": "VOC2007/test", "num_images": 100}
    recipe = report["protocol"]["recipes"]["all"]
    assert (recipe["iterations"], recipe["batch_size"], recipe["learning_rate"]) == (2, 4, 0.003)
    assert report["protocol"]["trained"]["fc6-8"].startswith("the new classifier alone")
    (seed,) = report["rows"][1]["modes"]["all"]["seeds"]
    assert list(seed["classes"]) == list(CLASSES)
    assert seed["map"] == pytest.approx(sum(seed["classes"].values()) / 20)
    assert seed["map_eleven_points"] == pytest.approx(sum(seed["classes_eleven_points"].values()) / 20)
    table = check_table(
        capsys, *command, devkit, "--iterations", 1, "--batch-size", 2, "--no-baselines", "--train", "all"
    )
    assert not any(line.startswith("untrained network") for line in table)
    assert any(line.startswith("published: DeepCluster, AlexNet [mem]") and "0.737" in line for line in table)
    assert [line.split()[0] for line in table if line.split()[:1] and line.split()[0] in CLASSES] == list(CLASSES)


def test_detection_in_real_photographs(
    finished: str, shared_data: Path, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("voc-detection", finished, "--image-size", 80, "--proposals", 10, "--data")
    report = report_of(capsys, *command, shared_data / EXCERPT, "--iterations", 2)
    check_report(report, finished, "map")
    (seed,) = report["rows"][0]["modes"]["fc6-8"]["seeds"]
    assert seed["map_area"] == pytest.approx(sum(seed["classes_area"].values()) / 20)
    assert report["protocol"]["regions"]["short_sides"] == [80]
    table = check_table(capsys, *command, devkit, "--iterations", 1, "--no-baselines", "--train", "fc6-8")
    assert any(line.startswith("published: DeepCluster, AlexNet [mem]") and "0.514" in line for line in table)


def test_segmentation_of_real_photographs(
    finished: str, shared_data: Path, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("voc-segmentation", finished, "--image-size", 64, "--batch-size", 2, "--data")
    report = report_of(capsys, *command, shared_data / EXCERPT, "--iterations", 2)
    check_report(report, finished, "mean_iou")
    assert report["data"]["train"] == {"split": "VOC2007/trainval", "num_images": 62}
    (seed,) = report["rows"][1]["modes"]["all"]["seeds"]
    known = [value for value in seed["classes"].values() if value is not None]
    assert list(seed["classes"]) == ["background", *CLASSES]
    assert (len(known), sum(known) / len(known)) == (seed["num_classes"], pytest.approx(seed["mean_iou"]))
    table = check_table(capsys, *command, devkit, "--iterations", 1, "--no-baselines", "--train", "all")
    assert any(line.startswith("published: DeepCluster, AlexNet [mem]") and "0.451" in line for line in table)


def test_the_same_command_gives_the_same_scores_and_seeds_differ(
    finished: str, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("voc-classification", finished, "--data", devkit, "--iterations", 3, "--crops", 1, "--seeds", 2)
    reports = [report_of(capsys, *command, "--no-baselines", "--train", "all") for _ in range(2)]
    found = [report["rows"][0]["modes"]["all"] for report in reports]
    assert found[0]["seeds"] == found[1]["seeds"]
    first, second = (seed["map"] for seed in found[0]["seeds"])
    assert first != second
    mean, deviation = found[0]["scores"]["map"].values()
    assert (mean, deviation) == pytest.approx(((first + second) / 2, abs(first - second) / 2**0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("voc-classification", "--preset", "caffe"), "--preset='caffe' is unknown: deepcluster, deepcluster-caffe"),
        (("voc-classification", "--train", "fc8"), "--train='fc8' is unknown: fc6-8, all, or both with a comma"),
        (("voc-segmentation", "--train", "all,all"), "--train='all,all' is unknown"),
        (("voc-detection", "--device", "gpu"), "--device='gpu' is unknown: auto, cpu or cuda"),
        (("voc-detection", "--image-size", "big"), "--image-size='big' is no list of sides in pixels"),
        (("voc-detection", "--image-size", "600,0"), "--image-size='600,0': sides are at least 1 pixel"),
        (("voc-classification", "--train-split", "val"), "Main/val.txt does not exist; lists of"),
        (("voc-detection", "--test-split", "2012/test"), "split '2012/test' names the year 2012; here are 2007"),
    ],
)
def test_wrong_options_are_refused_with_the_choices(
    finished: str, devkit: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    kind, *others = arguments
    assert message in message_of(capsys, kind, finished, "--data", devkit, *others)


def test_damage_is_named_before_anything_is_trained(
    finished: str, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    year = devkit / "VOC2007"
    (year / "Annotations/000041.xml").write_text(annotation("000041", described("bus", (0, 1, 9, 9))))
    error = message_of(capsys, "voc-detection", finished, "--data", devkit, "--iterations", 1)
    assert "Annotations/000041.xml, object 1 (bus): the box (xmin 0" in error
    assert "iteration" not in error
    (year / "SegmentationClass/000044.png").unlink()
    error = message_of(capsys, "voc-segmentation", finished, "--data", devkit, "--iterations", 1)
    assert "SegmentationClass/000044.png is no mask that decodes" in error
    (year / "JPEGImages/000050.jpg").write_bytes(b"\xff\xd8 no picture")
    error = message_of(capsys, "voc-classification", finished, "--data", devkit, "--iterations", 1)
    assert "JPEGImages/000050.jpg does not decode" in error


def test_a_class_without_objects_is_named(finished: str, devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("000002", "000022"):  # the bicycles of trainval
        (devkit / "VOC2007/Annotations" / f"{name}.xml").write_text(annotation(name, described("bicycle", difficult=1)))
    error = message_of(capsys, "voc-detection", finished, "--data", devkit)
    assert "Main/trainval.txt: no annotation of these 40 images has an object bicycle that is not difficult" in error


def test_a_class_without_pixels_in_training_is_named(
    finished: str, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = devkit / "VOC2007/SegmentationClass"
    for name in ("000002", "000022"):  # the bicycles of trainval
        shutil.copy(folder / "000001.png", folder / f"{name}.png")
    error = message_of(capsys, "voc-segmentation", finished, "--data", devkit)
    assert "Segmentation/trainval.txt: no mask of these 40 images shows a bicycle" in error


def test_a_size_that_does_not_suit_the_network_is_refused() -> None:
    def subject(name: str, image_size: int) -> Any:
        config = SimpleNamespace(views=SimpleNamespace(image_size=image_size))
        backbone = build_backbone(ModelSection(name=name), image_size, seed=0)
        return SimpleNamespace(run=SimpleNamespace(config=config, backbone=backbone))

    assert _image_size(subject("small_convnet", 32), None) == 32
    assert _image_size(subject("small_convnet", 32), 224) == 224
    alexnet = subject("alexnet", 63)
    assert _image_size(alexnet, 64) == 64, "the map of 63 pixels is as large"
    with pytest.raises(UsageError, match="--image-size=224 does not suit the run's network: it was built for 63"):
        _image_size(alexnet, 224)
