"""A run that training wrote, so that what the report expects is what is written."""

from __future__ import annotations

from pathlib import Path

from dcdist.report import write_report
from tests.report.parsed_page import ParsedPage
from tests.runs.conftest import NUM_IMAGES, experiment
from tests.runs.processes import run, write_config


def test_a_run_of_two_attempts(tmp_path: Path, digits_folder: Path) -> None:
    """The second one grows it by an epoch."""
    folder = tmp_path / "run"
    config = write_config(tmp_path / "config.yaml", experiment(digits_folder, folder))
    assert run(config, ["train.num_epochs=2"]) == [0]
    assert run(config, ["train.num_epochs=3", "evaluation.summary=true"]) == [0]
    page = ParsedPage(Path(write_report([str(folder)]).url).read_text())
    words = page.words()
    assert "deepcluster: 3 of 3 epochs; 21 steps" in words
    assert f"training images {NUM_IMAGES} " in words
    assert "restarts 1, 0 steps repeated" in words
    assert "Summary at the end of the run" in words
    assert "damaged" not in words
    assert {image["alt"].split(":")[0] for image in page.named("img")} <= set("0123456789")
    titles = [svg["aria-label"] for svg in page.named("svg")]
    assert titles == [
        *("Loss", "Clustering objective", "Change between clusterings", "Agreement with the labels"),
        *("Cluster sizes over epochs", "Sizes by rank", "Balance of the clusters", "Sizes of the final clusters"),
        *("Images by cluster and class", "Time line", "Time of each epoch", "Speed of training"),
    ]
    assert page.named("img")
