"""Bad input is named: what was given, what was expected, the remedy; no traceback, nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from dcdist.metrics.jsonl import read_metrics
from dcdist.models.numerics import has_bfloat16
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_storage
from tests.runs.conftest import NUM_IMAGES, experiment
from tests.runs.processes import final_state, run, run_to_message, write_config


@pytest.fixture
def images(tmp_path: Path, digits_folder: Path) -> Path:
    """A copy of the digits that a test may spoil."""
    return Path(shutil.copytree(digits_folder, tmp_path / "images"))


def refused(config: Path, *overrides: str, code: int = 2, num_processes: int = 1) -> str:
    """The message of a run that does not start."""
    found, message = run_to_message(config, overrides, num_processes)
    assert found == code, message
    return message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("clustring.num_clusters=5", ["clustring", "did you mean clustering"]),
        ("train.num_epoch=5", ["train.num_epoch", "did you mean train.num_epochs"]),
        ("train.batch_size=many", ["train.batch_size", "many", "integer"]),
        ("train.batch_size=0", ["train.batch_size", "0"]),
        ("model.name=alexnett", ["alexnett", "alexnet", "vgg16"]),
        ("data.root=/nowhere/images", ["/nowhere/images"]),
        ("data.split=train", ["no split 'train'"]),
        ("clustering.num_clusters=101", ["clustering.num_clusters=101", "has 100", "at most 100"]),
        ("features.pca_dimensions=101", ["features.pca_dimensions=101", "images (100)", "or to null"]),
        ("launch.device=cuda", ["launch.device=cuda", "set launch.device=cpu or auto"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    override: str, words: list[str], config: Path, tmp_path: Path
) -> None:
    message = refused(config, override)
    for word in words:
        assert word in message
    assert message.startswith("dcdist: ")
    assert not (tmp_path / "run" / "attempts").exists(), "nothing was started"


def test_what_all_processes_know_one_says(config: Path) -> None:
    message = refused(config, "launch.device=cuda", num_processes=2)
    assert message.count("torch sees no GPU") == 1


def test_an_empty_folder(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(config, f"data.root={tmp_path / 'empty'}")
    assert str(tmp_path / "empty") in message
    assert "no image" in message


def spoil(images: Path, count: int) -> list[str]:
    """Makes so many images undecodable; their keys."""
    spoilt = sorted(images.rglob("*.png"))[:count]
    for path in spoilt:
        path.write_bytes(b"this is no image")
    return [str(path.relative_to(images)) for path in spoilt]


def test_undecodable_images_are_named_and_left_out(images: Path, tmp_path: Path) -> None:
    keys = spoil(images, 3)
    config = write_config(tmp_path / "config.yaml", experiment(images, tmp_path / "run"))
    code, message = run_to_message(config)
    assert code == 0
    assert f"image {keys[0]!r} does not decode: no known image format" in message
    state = final_state(tmp_path / "run")
    names = pq.read_table(tmp_path / "run" / "keys.parquet")["key"].to_pylist()
    for assignments in ("deepcluster-0", "deepcluster-2", "deepcluster-final"):
        clusters = dict(zip(names, state[f"{assignments}/cluster"], strict=True))
        assert [name for name, cluster in clusters.items() if cluster == -1] == keys
    events = [record for record in read_metrics(open_storage(tmp_path / "run")) if record.get("event") == "undecodable"]
    assert [event["count"] for event in events] == [3, 3, 3], "at each pass"
    assert f"3 of {NUM_IMAGES} images do not decode: {keys[0]} (no known image format" in events[0]["message"]
    log = (tmp_path / "run" / "logs" / "0001-rank-0.log").read_text()
    assert all(f"image {key!r} does not decode" in log for key in keys)


def test_an_undecodable_image_is_fatal_by_config(images: Path, tmp_path: Path) -> None:
    (key,) = spoil(images, 1)
    config = write_config(tmp_path / "config.yaml", experiment(images, tmp_path / "run"))
    message = refused(config, "data.undecodable=fail", code=1)
    assert f"1 of {NUM_IMAGES} images do not decode: {key}" in message
    assert "data.undecodable=skip" in message


def test_too_few_images_that_decode(images: Path, tmp_path: Path) -> None:
    spoil(images, NUM_IMAGES - 5)
    config = write_config(tmp_path / "config.yaml", experiment(images, tmp_path / "run"))
    message = refused(config, "features.pca_dimensions=4")
    assert "The final clustering needs 6 that do: mend them, or lower clustering.num_clusters" in message
    message = refused(config, f"run.dir={tmp_path / 'other'}")
    assert "The final clustering needs 8 that do" in message
    several = ["readout.num_clusters=2", "readout.pca_dimensions=2", "readout.merge_to=null"]
    message = refused(config, "features.pca_dimensions=4", *several, f"run.dir={tmp_path / 'several'}")
    assert "clustering.num_clusters=6 needs at least as many images with features, here are 5" in message
    message = refused(config, *several, f"run.dir={tmp_path / 'reduced'}")
    assert "features.pca_dimensions=8 needs at least as many images and raw features, here are 5 images" in message
    spoil(images, NUM_IMAGES)
    for method in ("deepcluster", "simclr"):
        message = refused(config, f"method={method}", f"run.dir={tmp_path / method}")
        assert "no image of data.root decodes: 0/0000.png" in message


def test_images_that_are_all_equal(images: Path, tmp_path: Path) -> None:
    for path in images.rglob("*.png"):
        Image.new("L", (8, 8), 77).save(path)
    config = write_config(tmp_path / "config.yaml", experiment(images, tmp_path / "run"))
    message = refused(config, code=1)
    assert "the features are all equal: 100 rows" in message


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_loss_that_is_not_finite(num_processes: int, config: Path, tmp_path: Path) -> None:
    diverging = ["train.learning_rate=1e30", "train.optimizer=sgd"]
    message = refused(config, *diverging, code=1, num_processes=num_processes)
    assert "not finite" in message
    assert "train.learning_rate" in message
    infos = RunDirectory(str(tmp_path / "run")).inventory()
    assert infos, "what was before is safe"
    assert all(info.state == "ok" for info in infos)
    attempt = RunDirectory(str(tmp_path / "run")).read_attempt(1)
    assert attempt["ended"]["exit_code"] == 1
    assert "not finite" in attempt["ended"]["reason"]


@pytest.fixture
def begun(config: Path) -> Path:
    """A config whose run has trained nine steps."""
    assert run(config, DCDIST_FAULT="train:step:9:*:SIGTERM") == [75]
    return config


def test_identity_must_match(begun: Path, tmp_path: Path) -> None:
    message = refused(begun, "clustering.num_clusters=7", "run.seed=6")
    assert "clustering.num_clusters is 7, the run has 6" in message
    assert "run.seed is 6, the run has 5" in message
    assert len(list((tmp_path / "run" / "attempts").glob("*.json"))) == 1


def test_placement_is_free_and_automatic_values_stay(config: Path, tmp_path: Path) -> None:
    other = "fp32" if has_bfloat16(torch.device("cpu")) else "bf16"  # what auto would not take here
    assert run(config, [f"train.precision={other}"], DCDIST_FAULT="train:step:9:*:SIGTERM") == [75]
    before = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert before["train"]["precision"] == other
    overrides = ["train.precision=auto", "metrics.every_num_steps=1", "clustering.placement=distributed"]
    assert run(config, overrides) == [0]
    after = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert after["train"] == before["train"]
    assert after["clustering"]["placement"] == "distributed"


def test_other_data_is_refused(begun: Path, images: Path, digits_folder: Path, tmp_path: Path) -> None:
    next(iter(images.rglob("*.png"))).unlink()
    message = refused(begun, f"data.root={images}")
    assert f"data.root={images} holds 99 images" in message
    assert "the run was started on 100" in message
    moved = Path(shutil.copytree(digits_folder, tmp_path / "moved"))
    assert run(begun, [f"data.root={moved}"]) == [0], "the path is free"


def test_the_horizon_may_grow(config: Path, tmp_path: Path) -> None:
    def trained(folder: str) -> dict[str, Any]:
        return final_state(tmp_path / folder)

    assert run(config) == [0]
    assert run(config, ["train.num_epochs=4"]) == [0]
    assert run(config, ["train.num_epochs=4", f"run.dir={tmp_path / 'at-once'}"]) == [0]
    grown, at_once = trained("run"), trained("at-once")
    assert grown["progress"] == at_once["progress"]
    for name, value in at_once.items():
        if name != "progress":
            assert grown[name].tobytes() == value.tobytes(), name


def test_a_lost_config_is_not_replaced_by_another(begun: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "config.yaml").unlink()
    message = refused(begun, "clustering.num_clusters=7")
    assert "has lost its config.yaml" in message
    assert run(begun) == [0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["features.pca_dimensions=256"], "features.pca_dimensions=256 needs at least as many images"),
        (["readout.pca_dimensions=40"], "readout.pca_dimensions=40 needs at least as many images"),
        (["readout.method=scan", "clustering.num_neighbors=100"], "clustering.num_neighbors=100 needs more images"),
        (["readout.method=pic", "clustering.num_neighbors=100"], "clustering.num_neighbors=100 needs more images"),
    ],
)
def test_what_the_readout_would_refuse_is_refused_before_training(
    overrides: list[str], message: str, images: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", experiment(images, tmp_path / "run"))
    assert message in refused(config, "method=simclr", *overrides)
    assert not (tmp_path / "run/attempts").exists()


def test_what_a_later_stage_would_refuse_is_refused_before_training(images: Path, tmp_path: Path) -> None:
    stages = [{"name": "first", "method": "deepcluster"}, {"name": "second", "method": "jigsaw"}]
    jigsaw = {"puzzle_size": 27, "tile_size": 8, "pool": 3, "num_permutations": 5}
    values = {**experiment(images, tmp_path / "run"), "stages": stages, "jigsaw": jigsaw}
    assert "stage second: the network's map" in refused(write_config(tmp_path / "config.yaml", values))
    assert not (tmp_path / "run/attempts").exists()
