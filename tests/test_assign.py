"""`dcdist assign`: a run's own images get the clusters that the run found, others those of the same transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcdist import assign as module
from dcdist import features
from dcdist.build.run import build_numerics
from dcdist.build.views import build_images
from dcdist.cli import main
from dcdist.data.loader import BatchLoader
from dcdist.data.source import open_source
from dcdist.distributed.collectives import Collectives
from dcdist.engine.readout import assign_everywhere
from dcdist.stored_run import read_run
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config

NUM_TRAIN, NUM_TEST = 150, 60


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files, a folder a class below a folder a split, and a file in each split that is no image."""
    root = tmp_path_factory.mktemp("split-digits")
    data = load_digits()
    for index in range(NUM_TRAIN + NUM_TEST):
        folder = root / ("train" if index < NUM_TRAIN else "test") / str(data.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 255 / 16).round().astype("uint8")).save(folder / f"{index:04d}.png")
    for split in ("train", "test"):
        (root / split / "4" / "damaged.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module", params=[1, 2])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The folder of a run that one or two processes did, whose batches are not a multiple of anything."""
    folder = tmp_path_factory.mktemp("finished")
    values = experiment(digits, folder / "run")
    values["data"] |= {"split": "train", "heldout_split": "test", "undecodable": "skip"}
    values["features"] |= {"batch_size": 13}
    config = write_config(folder / "config.yaml", values)
    assert run(config, num_processes=request.param) == [0] * request.param
    return folder / "run"


def ends(*arguments: Any) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_runs_own_images_are_in_its_final_clusters(
    finished: Path, digits: Path, tmp_path: Path, num_processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bit by bit, distances too, whatever the number of processes then and now."""
    out = tmp_path / "clusters.parquet"
    assert ends("assign", finished, digits, "--split", "train", "--out", out, "--num-processes", num_processes) == 0
    found, recorded = read(out), read(finished / "assignments" / "deepcluster-final.parquet")
    for name in ("sample_id", "head", "cluster"):
        assert np.array_equal(found[name], recorded[name])
    assert np.array_equal(found["distance"], recorded["distance"], equal_nan=True)
    damaged = list(found["key"]).index("train/4/damaged.png")
    assert found["cluster"][damaged] == -1
    assert (found["cluster"] >= 0).sum() == NUM_TRAIN
    said = capfd.readouterr().out
    assert "151 images in 3 clusters" in said
    assert "1 do not decode" in said
    assert "100.0000% as in its final clustering" in said
    assert [path.name for path in tmp_path.iterdir()] == ["clusters.parquet"]


def test_other_images_stream_through_in_blocks(
    finished: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all rows at once would be assigned; the damaged image falls into a block, its key and order are kept."""
    monkeypatch.setattr(module, "ROWS_A_BLOCK", 7)
    monkeypatch.setattr(features, "ROWS_A_BLOCK", 7)
    out = tmp_path / "clusters.parquet"
    assert ends("assign", finished, digits, "--split", "test", "--out", out, "--device", "cpu") == 0
    found = read(out)
    source = open_source(digits, "test")
    assert list(found["key"]) == list(source.keys)
    assert found["sample_id"].tolist() == list(range(NUM_TEST + 1))
    stored = read_run(str(finished))
    images = build_images(
        stored.stage, build_numerics(stored.stage.train, torch.device("cpu")), BatchLoader([source], 0)
    )
    raw = features.extract_features(stored.backbone, source, images, Collectives())
    assert stored.readout is not None
    clusters, distances = assign_everywhere(stored.readout, stored.readout.rows(raw), len(source), Collectives())
    assert np.array_equal(found["cluster"], clusters.numpy())
    assert found["distance"] == pytest.approx(distances.numpy(), rel=1e-5, nan_ok=True)


def test_two_processes_write_what_one_writes(finished: Path, digits: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        out = tmp_path / f"{number}.parquet"
        assert ends("assign", finished, digits / "test", "--out", out, "--num-processes", number) == 0
    one, two = read(tmp_path / "1.parquet"), read(tmp_path / "2.parquet")
    for name in ("sample_id", "key", "cluster"):
        assert np.array_equal(one[name], two[name])
    assert one["distance"] == pytest.approx(two["distance"], rel=1e-5, nan_ok=True)


def test_a_file_that_is_there_is_kept(
    finished: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clusters.parquet"
    out.write_bytes(b"something dear")
    assert ends("assign", finished, digits / "test", "--out", out) == 2
    assert "is there already: give another --out, or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"something dear"
    assert ends("assign", finished, digits / "test", "--out", out, "--overwrite") == 0
    assert len(read(out)["cluster"]) == NUM_TEST + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "clusters.csv"], "the file's name ends in .parquet"),
        (["--out", "clusters.parquet", "--device", "tpu"], "--device='tpu' is unknown: auto, cpu or cuda"),
        (["--out", "clusters.parquet", "--num-processes", "0"], "--num-processes=0: at least 1"),
        (["--out", "clusters.parquet", "--split", "validation"], "validation"),
        (["--out", "clusters.parquet", "--stage", "other"], "has no stage 'other': its stages are deepcluster"),
    ],
)
def test_wrong_use_is_named(
    finished: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ends("assign", finished, digits, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_done_has_no_clusters_to_assign(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = experiment(digits / "test", tmp_path / "run")
    values["data"] |= {"undecodable": "skip"}
    config = write_config(tmp_path / "config.yaml", values)
    assert run(config, DCDIST_FAULT="train:step:9:*:SIGUSR2") == [75]
    assert ends("assign", tmp_path / "run", digits, "--out", tmp_path / "clusters.parquet") == 2
    assert "has no final clustering yet: stage deepcluster has not ended" in capsys.readouterr().err
