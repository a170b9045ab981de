"""What a run writes, as other tools read it, and what the commands say of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import normalized_mutual_info_score

from dcdist import score
from dcdist.cli import main
from dcdist.errors import UsageError
from dcdist.metrics.jsonl import read_metrics
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_storage
from tests.runs.conftest import NUM_IMAGES, experiment
from tests.runs.processes import run, start_run, write_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The folder of a run that was preempted once and ended, with TensorBoard and a summary."""
    folder = tmp_path_factory.mktemp("finished")
    values = experiment(digits_folder, folder / "run")
    values["metrics"] |= {"tensorboard": True, "every_num_steps": 1}
    values["evaluation"] = {"summary": True, "whitening_dimensions": 8}
    config = write_config(folder / "config.yaml", values)
    assert run(config, DCDIST_FAULT="train:step:9:*:SIGUSR2") == [75]
    assert run(config) == [0]
    return folder / "run"


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(open_storage(str(folder))) if record["kind"] == kind]


def test_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "attempts", "metrics", "keys.parquet", "assignments", "evaluations", "checkpoints",
        "tensorboard", "logs",
    }  # fmt: skip
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    for name in (
        "attempts/0001.json", "attempts/0002.json", "metrics/0001.jsonl", "metrics/0002.jsonl",
        "assignments/deepcluster-0.parquet", "assignments/deepcluster-1.parquet", "assignments/deepcluster-2.parquet",
        "assignments/deepcluster-final.parquet", "evaluations/summary-0001.json", "logs/0001-rank-0.log",
    ):  # fmt: skip
        assert name in names
    kept = {path.name for path in (finished / "checkpoints").iterdir()}
    assert kept == {"step-00000021-train.0002", "step-00000021-final.0002"}
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["train"]["precision"] == "fp32"
    assert config["clustering"]["num_clusters"] == 6


def test_attempts_say_when_where_and_why_they_ended(finished: Path) -> None:
    first, second = (json.loads((finished / "attempts" / f"{number:04d}.json").read_text()) for number in (1, 2))
    for number, attempt in enumerate((first, second), 1):
        assert attempt["attempt"] == number
        assert attempt["num_processes"] == 1
        assert attempt["versions"].keys() >= {"python", "torch", "torchvision", "numpy", "pyarrow"}
        assert attempt["hardware"]["device"] == "cpu"
        assert attempt["data"]["num_images"] == NUM_IMAGES
        assert {"began", "host", "pid", "git"} <= attempt.keys()
    assert first["began_from"] is None
    assert second["began_from"] == "step-00000009-train.0001"
    assert (first["ended"]["exit_code"], first["ended"]["signal"]) == (75, "SIGUSR2")
    assert (second["ended"]["exit_code"], second["ended"]["reason"]) == (0, "done")
    assert second["ended"]["last_commit"] == "step-00000021-final.0002"


def test_parquet_files(finished: Path, digits_folder: Path) -> None:
    keys = pq.read_table(finished / "keys.parquet")
    assert keys.schema.equals(pa.schema([("sample_id", pa.int64()), ("key", pa.string()), ("label", pa.int32())]))
    assert keys["sample_id"].to_pylist() == list(range(NUM_IMAGES))
    assert keys["key"].to_pylist() == sorted(
        str(path.relative_to(digits_folder)) for path in digits_folder.rglob("*.png")
    )
    assert keys["label"].to_pylist() == [int(key[0]) for key in keys["key"].to_pylist()]
    for name, num_clusters in (("0", 6), ("2", 6), ("final", 3)):
        table = pq.read_table(finished / "assignments" / f"deepcluster-{name}.parquet")
        types = [("sample_id", pa.int64()), ("head", pa.int16()), ("cluster", pa.int32()), ("distance", pa.float32())]
        assert table.schema.equals(pa.schema(types))
        assert table["sample_id"].to_pylist() == list(range(NUM_IMAGES))
        assert set(table["head"].to_pylist()) == {0}
        assert set(table["cluster"].to_pylist()) == set(range(num_clusters)), "no empty cluster"
        assert np.isfinite(table["distance"].to_numpy()).all()


def test_records_of_clusterings_follow_from_the_assignments(finished: Path) -> None:
    labels = pq.read_table(finished / "keys.parquet")["label"].to_numpy()
    found = records(finished, "clustering")
    assert [(record["epoch"], record["step"]) for record in found] == [(0, 0), (1, 7), (2, 14)]
    previous = None
    for record in found:
        clusters = pq.read_table(finished / "assignments" / f"deepcluster-{record['epoch']}.parquet")[
            "cluster"
        ].to_numpy()
        shares = np.bincount(clusters, minlength=6) / NUM_IMAGES
        assert record["stage"] == "deepcluster"
        assert (record["head"], record["num_clusters"]) == (0, 6)
        assert record["size_entropy_ratio"] == pytest.approx(-(shares * np.log(shares)).sum() / math.log(6))
        assert record["imbalance_factor"] == pytest.approx(6 * (shares**2).sum())
        assert record["size_max_ratio"] == pytest.approx(shares.max())
        assert record["nmi_targets"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
        if previous is None:
            assert not {"nmi_previous", "changed_ratio"} & record.keys()
        else:
            assert record["nmi_previous"] == pytest.approx(normalized_mutual_info_score(previous, clusters))
            assert 0 <= record["changed_ratio"] <= 1
        assert record["seconds"].keys() >= {"features", "reduce", "cluster"}
        assert record.keys() >= {"num_empty_repaired", "objective", "iterations", "time"}
        previous = clusters


def test_records_of_steps_epochs_and_events(finished: Path) -> None:
    steps = records(finished, "step")
    assert [record["step"] for record in steps] == list(range(1, 22)), "each once, over both attempts"
    assert all(math.isfinite(record["loss"]) and record["learning_rate"] == 0.001 for record in steps)
    assert all(record["losses"].keys() == {"clusters"} for record in steps)
    epochs = records(finished, "epoch")
    assert [record["epoch"] for record in epochs] == [0, 1, 2]
    for record in epochs:
        assert record.keys() >= {"loss", "samples_per_second", "data_wait_ratio", "learning_rate", "seconds"}
        assert "heldout_loss" not in record, "nothing is held out"
    whole = epochs[0]  # the second was cut in two
    assert whole["loss"] == pytest.approx(np.mean([record["loss"] for record in steps[:7]]))
    events = [record["event"] for record in records(finished, "event")]
    assert events.count("start") == 2
    assert events.count("stage_done") == 1
    assert "checkpoint" in events


def test_the_read_out_and_the_scores_are_phases(finished: Path) -> None:
    events = records(finished, "event")
    done = {event["phase"]: event["seconds"] for event in events if event["event"] == "phase_done"}
    assert done.keys() == {"features", "reduce", "cluster", "train", "readout", "score"}
    assert all(seconds > 0 for seconds in done.values())
    assert [event["phase"] for event in events if event["event"] == "phase"][-2:] == ["readout", "score"]


def test_checkpoints_are_recorded_once(finished: Path) -> None:
    names = [event["name"] for event in records(finished, "event") if event["event"] == "checkpoint"]
    assert len(set(names)) == len(names)


def of_few_images_alone() -> None:
    score.MOST_IMAGES = NUM_IMAGES - 1


def test_of_very_many_images_there_is_no_summary(tmp_path: Path, digits_folder: Path) -> None:
    values = {**experiment(digits_folder, tmp_path / "run"), "evaluation": {"summary": True}}
    values["train"]["num_epochs"] = 1
    started = start_run(write_config(tmp_path / "config.yaml", values), prepare=of_few_images_alone)
    assert started.wait() == [0]
    assert "100 images, of more than 99 there is no summary: `dcdist evaluate` measures the run" in started.errors()
    assert not (tmp_path / "run" / "evaluations").exists()
    assert records(tmp_path / "run", "evaluation") == []


def test_the_summary_is_stored(finished: Path) -> None:
    summary = json.loads((finished / "evaluations" / "summary-0001.json").read_text())
    (recorded,) = records(finished, "evaluation")
    trained = summary["rows"][-1]
    assert (recorded["knn"], recorded["nmi"]) == (trained["knn"], trained["plain"]["nmi"])
    assert "linear" not in recorded, "without held-out images there is none"
    assert [row["name"] for row in summary["rows"]] == ["raw pixels", "untrained network", "trained network"]
    for row in summary["rows"]:
        assert 0 <= row["knn"] <= 1
        assert {"plain", "whitened"} <= row.keys()


def test_checkpoints_are_listed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ends(["checkpoints", str(finished)], 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step-00000021-train.0002", "step-00000021-final.0002"]
    assert all(line.endswith("  ok") for line in lines)
    assert "stage deepcluster" in lines[-1]


def test_a_run_that_has_ended_is_not_asked_to_stop(finished: Path) -> None:
    with pytest.raises(UsageError, match=r"attempt 2 of .* has ended already \(done\): nothing is to be stopped"):
        RunDirectory(str(finished)).request_stop()
    assert not list((finished / "attempts").glob("*stop*"))


def main_ends(arguments: list[str], code: int) -> None:
    found = 0
    try:
        main(arguments)
    except SystemExit as error:  # a command that is done may return or exit
        found = int(error.code or 0)
    assert found == code


def test_a_plan_starts_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ends(["train", str(config), "--plan", "launch.num_processes=2"], 0)
    printed = capsys.readouterr().out
    assert "processes         2 on cpu" in printed
    assert "k-means           rank0: 100 rows of 8 float32 features" in printed
    assert not (tmp_path / "run").exists()
