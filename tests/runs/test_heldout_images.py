"""Held-out images take no part in training; damaged ones, or such without labels, are told of and end no run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcdist import session
from dcdist.build.run import open_data
from dcdist.cli import main
from dcdist.config.load import load_config
from dcdist.config.schema import DataSection
from dcdist.data.source import open_source
from dcdist.evaluate import Options, evaluate
from dcdist.evaluation.feature_sets import TRAINED
from dcdist.metrics.jsonl import read_metrics
from dcdist.plan import describe_plan
from dcdist.report.examples import find_examples
from dcdist.report.history import read_history
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_storage
from tests.runs.conftest import experiment
from tests.runs.processes import run, run_to_message, write_config

NUM_TRAIN, NUM_TEST = 80, 20
DAMAGED = b"this is no image"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCDIST_CACHE", str(tmp_path / "cache"))


def images(
    file: Path, digits_folder: Path, train_labels: int | None = 10, test_labels: int | None = 10, damaged: int = 0
) -> Path:
    """The digits as a Parquet file, every fifth held out, the first of these damaged; so many classes of each split."""
    files = sorted(digits_folder.rglob("*.png"))
    columns: dict[str, list[Any]] = {"image": [], "label": [], "split": [], "path": []}
    num_damaged = 0
    for number, path in enumerate(files):
        split, num_labels = ("test", test_labels) if number % 5 == 0 else ("train", train_labels)
        is_damaged = split == "test" and num_damaged < damaged
        num_damaged += is_damaged
        columns["image"].append(DAMAGED if is_damaged else path.read_bytes())
        columns["label"].append(None if num_labels is None else int(path.parent.name) % num_labels)
        columns["split"].append(split)
        columns["path"].append(path.name)
    pq.write_table(pa.table({**columns, "label": pa.array(columns["label"], pa.int32())}), file)
    return file


def config_of(folder: Path, root: Path, split: str | None = "train", summary: bool = False, **sections: Any) -> Path:
    values = experiment(root, folder / "run") | sections
    values["data"] |= {"split": split, "heldout_split": "test"}
    values["train"] |= {"num_epochs": 1}
    values["evaluation"] = {"summary": summary, "whitening_dimensions": 8}
    return write_config(folder / "config.yaml", values)


def events(folder: Path) -> list[str]:
    records = read_metrics(open_storage(folder))
    return [record["message"] for record in records if record.get("event") == "undecodable"]


def log_of(folder: Path) -> str:
    return (folder / "logs" / "0001-rank-0.log").read_text()


def test_no_split_trains_on_all_but_the_held_out_images(
    tmp_path: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images(tmp_path / "digits.parquet", digits_folder)
    config = config_of(tmp_path, root, split=None)
    fingerprint = open_source(root, "train").fingerprint()
    assert f"images            {NUM_TRAIN} in {root}, fingerprint {fingerprint[:12]}" in describe_plan(
        load_config(config), num_processes=1
    )
    assert run(config) == [0]
    folder = tmp_path / "run"
    directory = RunDirectory(str(folder))
    keys = pq.read_table(folder / "keys.parquet")["key"].to_pylist()
    assert keys == list(open_source(root, "train").keys)
    data = directory.read_attempt(1)["data"]
    assert data == {"fingerprint": fingerprint, "num_images": NUM_TRAIN}

    (row,) = (report := evaluate(str(folder), ("clusters",), Options(feature_sets=(TRAINED,)))["clusters"])["rows"]
    assert report["data"]["of_the_run"]
    assert (report["data"]["num_images"], report["heldout"]["num_images"]) == (NUM_TRAIN, NUM_TEST)
    assert row["final"]["seeds"][0]["agreement_with_run"] == 1.0
    alone = evaluate(str(folder), ("knn",), Options(heldout_split="none", neighbors=(5,), feature_sets=(TRAINED,)))
    assert (alone["knn"]["data"]["num_images"], alone["knn"]["data"]["of_the_run"]) == (NUM_TRAIN, True)
    every = Options(split="none", neighbors=(5,), feature_sets=(TRAINED,))
    assert evaluate(str(folder), ("knn",), every)["knn"]["data"]["num_images"] == NUM_TRAIN

    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["assign", str(folder), str(root), "--without", "test", "--out", str(tmp_path / "own.parquet")])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"{NUM_TRAIN} images in 3 clusters" in said
    assert "100.0000% as in its final clustering" in said

    section = load_config(config).data.model_dump()
    found = find_examples(directory, read_history(directory), [0, NUM_TRAIN - 1], section)
    assert (found.remark, len(found.thumbnails)) == ("", 2)


def train_on_all_images() -> None:
    """As dcdist did before it left held-out images out."""

    def open_all(data: DataSection) -> Any:
        return open_data(data, data.split)

    session.open_training_images = open_all  # type: ignore[assignment]


def test_a_run_that_was_trained_on_held_out_images_does_not_go_on_without_them(
    tmp_path: Path, digits_folder: Path
) -> None:
    config = config_of(tmp_path, images(tmp_path / "digits.parquet", digits_folder), split=None)
    assert run_to_message(config, prepare=train_on_all_images)[0] == 0
    code, message = run_to_message(config, ["train.num_epochs=2"])
    assert code == 2
    assert f"digits.parquet holds {NUM_TRAIN} images" in message
    assert f"the run was started on {NUM_TRAIN + NUM_TEST}" in message
    assert "started by a dcdist that did not leave those of data.heldout_split=test out of training" in message


def test_one_split_is_not_both(tmp_path: Path, digits_folder: Path) -> None:
    config = config_of(tmp_path, digits_folder)
    code, message = run_to_message(config, ["data.split=test"])
    assert code == 2
    assert message.endswith(
        "data.heldout_split=test is kept out of training, and data.split is the same: name another split, or set one "
        "of them to null\n"
    )


@pytest.mark.parametrize(
    ("labels", "words", "has_summary"),
    [
        ((None, 10), "no summary: no training image has a label. The run itself is complete.", False),
        ((10, None), "the summary is of training images alone: no image of the held-out split 'test' has a", True),
        ((1, 1), "no summary, raw pixels cannot be scored: a linear classifier needs at least 5 labelled", False),
    ],
)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_summary_that_cannot_be_made_is_a_warning(
    labels: Sequence[int | None],
    words: str,
    has_summary: bool,
    num_processes: int,
    tmp_path: Path,
    digits_folder: Path,
) -> None:
    root = images(tmp_path / "digits.parquet", digits_folder, *labels)
    code, message = run_to_message(config_of(tmp_path, root, summary=True), num_processes=num_processes)
    assert (code, message.count(words)) == (0, 1), message
    assert words in log_of(tmp_path / "run")
    file = tmp_path / "run/evaluations/summary-0001.json"
    assert file.exists() == has_summary
    if has_summary:
        summary = json.loads(file.read_text())
        assert "heldout" not in summary["clusters"]
        assert [row["linear"] for row in summary["rows"]] == [None] * 3
    assert RunDirectory(str(tmp_path / "run")).read_attempt(1)["ended"]["exit_code"] == 0


@pytest.mark.parametrize("method", ["deepcluster", "simclr", "scan"])
def test_damaged_held_out_images_are_counted_and_named(method: str, tmp_path: Path, digits_folder: Path) -> None:
    root = images(tmp_path / "digits.parquet", digits_folder, damaged=2)
    message = f"2 of {NUM_TEST} images of the held-out split 'test' do not decode: "
    config = config_of(tmp_path, root, method=method, clustering={"num_clusters": 6, "num_iterations": 5})
    assert run(config) == [0]
    (event,) = events(tmp_path / "run")
    first = open_source(root, "test").keys[0]
    assert event.startswith(f"{message}{first} (no known image format")
    assert log_of(tmp_path / "run").count(message) == 1
    code, error = run_to_message(config, ["data.undecodable=fail", f"run.dir={tmp_path / 'fatal'}"])
    assert code == 1
    assert message in error
    assert "Mend or remove them, or leave them out by data.undecodable=skip." in error


@pytest.mark.parametrize("num_processes", [1, 2])
def test_held_out_images_that_are_all_damaged_end_no_run(
    num_processes: int, tmp_path: Path, digits_folder: Path
) -> None:
    root = images(tmp_path / "digits.parquet", digits_folder, damaged=NUM_TEST)
    config = config_of(tmp_path, root, summary=True)
    code, message = run_to_message(config, num_processes=num_processes)
    assert code == 0, message
    assert f"{NUM_TEST} of {NUM_TEST} images of the held-out split 'test' do not decode" in message
    assert "no image of the held-out split 'test' that decodes has a label" in message
    (epoch,) = [record for record in read_metrics(open_storage(tmp_path / "run")) if record["kind"] == "epoch"]
    assert epoch.get("heldout_loss") is None
    summary = json.loads((tmp_path / "run/evaluations/summary-0001.json").read_text())
    assert "heldout" not in summary["clusters"]
