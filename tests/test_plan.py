"""What --plan says a run will need, held against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdist.config.load import load_config
from dcdist.errors import UsageError
from dcdist.plan import _size, describe_plan
from tests.runs.conftest import digits_folder, experiment
from tests.runs.processes import final_state, run, write_config

__all__ = ["digits_folder"]

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1010 * 2**20, "0.986 GiB"),
        (465 * 2**20, "465 MiB"),
        (5 * 2**40, "5 TiB"),
    ],
)
def test_sizes_have_three_digits(num_bytes: int, text: str) -> None:
    assert _size(num_bytes) == text


def test_a_small_run_by_hand(tmp_path: Path, digits_folder: Path) -> None:
    config = write_config(tmp_path / "config.yaml", experiment(digits_folder, tmp_path / "run"))
    lines = describe_plan(load_config(config, ["data.root=" + str(digits_folder)]), num_processes=2).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("images"))
    assert lines[start].startswith(f"images            100 in {digits_folder}, fingerprint ")
    assert lines[start + 1 :] == [
        "processes         2 on cpu",
        "",
        "stage deepcluster",
        "steps an epoch    7 of 16 images: 112 images",
        "steps in all      21",
        "reassignment      every 7 steps",
        # small_convnet at width 0.25 has 32 features
        "raw features      3.12 KiB a rank (50 x 32 in half precision), in memory",
        "PCA moments       8 KiB a rank (32 x 32 in float64)",
        "reduced features  1.56 KiB a rank (50 x 8 in float32)",
        "k-means           rank0: 100 rows of 8 float32 features are 2.98e-06 GiB, within "
        "clustering.gather_limit_gib=16",
        # 6 x (8 + 1) floats and 8 bytes an image are 1016; with 3200 of gathered rows, or 1600 of the rank's own
        "                  4.12 KiB on rank 0, 2.55 KiB elsewhere",
        lines[-1],
    ]
    assert lines[-1].startswith("checkpoint        ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "placement"), [("gmm", "distributed"), ("pic", "distributed"), ("scan", "rank0")])
def test_clusterers_that_have_no_choice(method: str, placement: str, tmp_path: Path, digits_folder: Path) -> None:
    config = write_config(tmp_path / "config.yaml", experiment(digits_folder, tmp_path / "run"))
    overrides = [f"clustering.method={method}", "readout.method=kmeans"]
    lines = describe_plan(load_config(config, overrides), num_processes=2).splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith(f"{method:<17} {placement}: "))
    # As by hand above: 3200 bytes of all rows, or 1600 of rank 0's own, beside the results.
    assert lines[number + 1].split()[:2] == (["4.12", "KiB"] if placement == "rank0" else ["2.55", "KiB"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_checkpoint_is_as_large_as_planned(optimizer: str, tmp_path: Path, digits_folder: Path) -> None:
    values = experiment(digits_folder, tmp_path / "run")
    values["train"]["optimizer"] = optimizer
    values["model"]["width"] = 4.0  # so that the JSON beside the tensors weighs little
    config = write_config(tmp_path / "config.yaml", values)
    planned = describe_plan(load_config(config), num_processes=1).splitlines()[-1]
    number, unit = planned.split()[1:]
    assert unit == "MiB"
    assert run(config, ["train.num_epochs=1"]) == [0]
    assert final_state(tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").glob("*-train.*"))
    assert sum(file.stat().st_size for file in newest.iterdir()) / 2**20 == pytest.approx(float(number), rel=0.03)


@pytest.mark.parametrize("name", ["alexnet_imagenet", "vgg16_imagenet", "alexnet_yfcc"])
def test_published_configs_refuse_data_that_is_too_small_for_them(name: str, digits_folder: Path) -> None:
    config = load_config(
        ROOT / "configs" / f"deepcluster_{name}.yaml", [f"data.root={digits_folder}", "data.split=null"]
    )
    with pytest.raises(UsageError, match=r"clustering\.num_clusters=10000 needs at least as many images"):
        describe_plan(config, num_processes=1)
