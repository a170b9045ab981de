"""The page: every section there, nothing from outside, everything escaped, a sentence where something is missing."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dcdist.cli import main
from dcdist.errors import UsageError
from dcdist.report import write_report
from dcdist.report.page import short_names
from dcdist.storage import LocalStorage
from tests.report.made_runs import SECTIONS, make_run, record, write, write_assignments, write_attempt, write_keys
from tests.report.parsed_page import ParsedPage
from tests.test_cli import call, modules_and_message


def page_of(*runs: Path, out: Path | None = None) -> ParsedPage:
    """The report, which is well formed and has every section."""
    written = write_report([str(run) for run in runs], out and str(out))
    assert written.num_bytes < 3_000_000
    page = ParsedPage(Path(written.url).read_text())
    assert tuple(attributes["id"] for attributes in page.named("section")) == SECTIONS
    return page


def test_a_finished_run(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    (html,) = page.named("html")
    assert html["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert page.words("title") == "dcdist report: run"
    drawings = page.named("svg")
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    titles = [svg["aria-label"] for svg in drawings]
    assert titles == [
        *("Loss", "Clustering objective", "Change between clusterings", "Agreement with the labels"),
        *("Cluster sizes over epochs", "Sizes by rank", "Balance of the clusters", "Sizes of the final clusters"),
        *("Images by cluster and class", "Time line", "Time of each epoch", "Speed of training"),
    ]
    words = page.words()
    assert "clusters: 3 of 3 epochs; 30 steps" in words
    assert "held-out loss, last epoch 1.5000" in words
    assert "They are not shown: the run's images cannot be read. nowhere does not exist" in words
    assert "method: deepcluster" in page.words("pre")


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    """But for the line that says when it was made."""
    folder = make_run(tmp_path / "run")
    texts = []
    for _ in range(2):
        page_of(folder)
        texts.append([line for line in (folder / "report.html").read_text().splitlines() if "report of" not in line])
    assert texts[0] == texts[1]


def test_pictures_of_clusters(tmp_path: Path, digits_folder: Path) -> None:
    """Those of the run's own data, each with its key and class, which may hold anything."""
    shutil.copytree(digits_folder, tmp_path / "digits")
    shutil.move(tmp_path / "digits" / "3", tmp_path / "digits" / "<script>alert(3)<")
    folder = make_run(tmp_path / "run", images=tmp_path / "digits")
    page = page_of(folder)
    images = page.named("img")
    assert len(images) == 3 * 24
    assert all(image["src"].startswith("data:image/webp;base64,") for image in images)
    pictured = {image["alt"] for image in images}
    assert all(re.fullmatch(r"(\d|<script>alert\(3\)<): \1/\d{4}\.png", words) for words in pictured)
    assert any(words.startswith("<script>alert(3)<: <script>alert(3)</") for words in pictured)
    assert "&lt;script&gt;alert(3)" in (folder / "report.html").read_text()
    assert [image.get("class") for image in images].count("other") > 0
    shutil.rmtree(tmp_path / "digits")
    assert page_of(folder).named("img") == images, "what the run keeps needs no data"


HOSTILE = '<script>alert("x")</script> $\\frac{1}$ & \u0007 \ud800 \u732b'


def test_everything_of_a_run_is_escaped(tmp_path: Path) -> None:
    """Names of stages, classes, losses, hosts, files, and the config."""
    stage = "a<b> & $x$"
    folder = make_run(tmp_path / "run<i>", stages=("plain",))
    values = {"losses": {HOSTILE: 1.0, "b": 2.0}, "figures": {HOSTILE: 0.5}, "loss": 3.0}
    lines = [
        record("event", 0, 0, 1, stage, event="phase", phase=HOSTILE),
        record("step", 0, 5, 5, stage, **values),
        record("epoch", 0, 10, 10, stage, loss=1.0, seconds={HOSTILE: 1.0}),
    ]
    described = {"num_processes": HOSTILE, "hardware": {"device": HOSTILE}, "launcher": {"name": HOSTILE}}
    write_attempt(folder, 2, 100, (120, 1, HOSTILE), lines, **described)
    write(folder / "config.yaml", f"method: {json.dumps(HOSTILE)}\n")
    rows = [{"name": HOSTILE, HOSTILE: 1.0, "text": HOSTILE}]
    evaluation = {"kind": HOSTILE, "rows": rows, "label_names": [HOSTILE] * 3, "data": {"of_the_run": True}}
    write(folder / "evaluations" / "any-0001.json", json.dumps(evaluation))
    page = page_of(folder)
    assert "script" not in {tag for tag, _ in page.elements}
    assert 'alert("x")' in page.words()
    assert "\u732b" in page.words()
    assert "\u0007" not in page.words()


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "run", num_epochs=3)
    second = make_run(tmp_path / "b" / "run", num_epochs=5, labels=False, heldout=False)
    page = page_of(first, second, out=tmp_path / "both.html")
    assert page.words("title") == "dcdist report: a/run and b/run"
    assert page.words("h3").split() == ["a/run", "b/run"] * (len(SECTIONS) - 1)
    titles = [svg["aria-label"] for svg in page.named("svg")]
    assert titles.count("Loss") == titles.count("Time line") == 2
    assert titles.count("Images by cluster and class") == 1
    words = page.words()
    assert "The images have no labels, so clusters cannot be compared with classes." in words
    assert "train.num_epochs 3 5" in words
    assert not (tmp_path / "a" / "run" / "report.html").exists()


def test_runs_without_differences(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "All keys of the configs have the same values." in page_of(folder, folder).words()


def test_several_stages_and_heads(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", stages=("first", "second"), num_heads=3))
    titles = [svg["aria-label"] for svg in page.named("svg")]
    assert {"Loss, stage first", "Loss, stage second", "Sizes by rank, stage second"} <= set(titles)
    assert "This is the final clustering of stage second." in page.words()
    assert "Strong lines: head 0 of 3; faint ones: the others." in page.words()


def _only_begun(folder: Path) -> None:
    for name in ("metrics", "assignments"):
        shutil.rmtree(folder / name)
    for name in ("keys.parquet", "config.yaml"):
        (folder / name).unlink()


def _without_end(folder: Path) -> None:
    content = json.loads((folder / "attempts" / "0001.json").read_text())
    del content["ended"]
    (folder / "attempts" / "0001.json").write_text(json.dumps(content))
    for name in ("clusters-final", "clusters-2"):
        (folder / "assignments" / f"{name}.parquet").unlink()


def _damaged_everywhere(folder: Path) -> None:
    write(folder / "evaluations" / "knn-0001.json", '{"kind": "knn"')
    for file in folder.rglob("*.*"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])


def _empty_files(folder: Path) -> None:
    for file in folder.rglob("*.*"):
        file.write_bytes(b"")


def _config_of_another_shape(folder: Path) -> None:
    (folder / "config.yaml").write_text("method: [1]\ndata: text\nstages: [a, {name: b}]\nmodel: 3\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            _only_begun,
            ["No step has been recorded yet.", "No clustering has been written yet.", "config.yaml is missing"],
        ),
        (_without_end, ["no end is recorded", "The run has no final clustering yet.", "after 1 epoch"]),
        (_damaged_everywhere, ["is damaged and left out", "damaged: how this attempt began and ended is not known"]),
        (_empty_files, ["config.yaml is damaged", "is damaged and left out"]),
        (_config_of_another_shape, ["at a glance", "loss"]),
        (lambda folder: shutil.rmtree(folder / "attempts"), ["attempts/0001.json is missing", "running"]),
        (lambda folder: shutil.rmtree(folder / "metrics"), ["No step has been recorded yet."]),
        (lambda folder: shutil.rmtree(folder / "assignments"), ["No clustering has been written yet."]),
        (lambda folder: (folder / "keys.parquet").unlink(), ["keys.parquet is missing or damaged"]),
        (lambda folder: write_keys(folder, [0, 1]), ["keys.parquet is missing or damaged"]),
        (lambda folder: write_keys(folder, [None] * 60), ["The images have no labels"]),
    ],
)
def test_what_is_missing_or_damaged_is_said(tmp_path: Path, change: Callable[[Path], object], words: list[str]) -> None:
    folder = make_run(tmp_path / "run")
    change(folder)
    found = page_of(folder, out=tmp_path / "report.html").words().lower()
    for expected in words:
        assert expected.lower() in found


def test_a_run_without_clusters_or_held_out_images(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", heldout=False, final=False)
    shutil.rmtree(folder / "assignments")
    metrics = folder / "metrics" / "0001.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if '"clustering"' not in line]
    metrics.write_text("\n".join(kept) + "\n")
    words = page_of(folder).words()
    assert "Stage clusters has recorded no clustering while training." in words
    assert "No held-out loss is recorded" in words


def test_ten_thousand_clusters_are_quick_and_small(tmp_path: Path) -> None:
    number, epochs = 200_000, 30
    folder = make_run(tmp_path / "run", num_images=number, num_epochs=1)
    generator = np.random.default_rng(0)
    weights = generator.gamma(0.5, size=10_000)
    for epoch in [*range(epochs), "final"]:
        clusters = generator.choice(10_000, number, p=weights / weights.sum())
        write_assignments(folder / "assignments" / f"clusters-{epoch}.parquet", [clusters], generator.random(number))
    write_keys(folder, generator.integers(0, 1000, number).tolist())
    began = time.process_time()
    page = page_of(folder)
    assert time.process_time() - began < 10
    assert "The 30 largest of" in page.words()


def test_a_run_on_an_object_store(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    fsspec.filesystem("memory").put(str(tmp_path / "run"), "/runs/first", recursive=True)
    written = write_report(["memory://runs/first"])
    assert written.url == "memory://runs/first/report.html"
    ParsedPage(fsspec.filesystem("memory").cat("/runs/first/report.html").decode())
    write_report(["memory://runs/first", str(tmp_path / "run")], "memory://reports/both.html")
    assert fsspec.filesystem("memory").exists("/reports/both.html")


def test_a_run_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    write_bytes = LocalStorage.write_bytes

    def refuse(self: LocalStorage, path: str, data: bytes) -> None:
        if self.root == str(folder):
            raise PermissionError(13, "Permission denied", path)
        write_bytes(self, path, data)

    monkeypatch.setattr(LocalStorage, "write_bytes", refuse)
    with pytest.raises(UsageError, match=r"report.html cannot be written .*Name a file elsewhere by --out"):
        write_report([str(folder)])
    page_of(folder, out=tmp_path / "elsewhere.html")


@pytest.mark.parametrize("out", ["folder/", "folder", ".", "nowhere/../folder"])
def test_a_report_needs_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"--out"):
        write_report([str(make_run(tmp_path / "run"))], out)


def test_names_tell_runs_apart() -> None:
    assert short_names(["/a/b/run"]) == ["run"]
    assert short_names(["/a/b/run/", "s3://bucket/c/run"]) == ["b/run", "c/run"]
    assert short_names(["/a/x", "/a/x"]) == ["x", "x"]
    assert short_names(["run", "/deep/er/run"]) == ["run", "er/run"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    code, out, _ = call(capsys, "report", str(folder))
    assert (code, out[: out.index(" (")]) == (0, f"{folder}/report.html")
    code, out, _ = call(capsys, "report", str(folder), str(folder), "--out", str(tmp_path / "new" / "two.html"))
    assert code == 0
    assert (tmp_path / "new" / "two.html").exists()
    code, _, err = call(capsys, "report", str(folder), "/nowhere/run")
    assert code == 2
    assert err.startswith("dcdist: /nowhere/run is no run")
    with pytest.raises(SystemExit) as ended:
        main(["report"])
    assert ended.value.code == 2


def test_it_needs_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    loaded, message = modules_and_message("report", str(folder))
    assert "report.html" in message
    assert not {"torch", "torchvision", "faiss", "sklearn"} & loaded
