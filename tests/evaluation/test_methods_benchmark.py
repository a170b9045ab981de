"""The table of all methods: resumed after kills, stale rows redone, means and spreads by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.methods import __main__ as methods
from benchmarks.methods import measure, rows, table
from benchmarks.methods.rows import Row, RowKey, Rows, config_digest
from benchmarks.methods.table import METHODS, PRETEXTS, Column, Line
from dcdist.config.load import load_config
from dcdist.run_directory import RunDirectory
from tests.runs.conftest import experiment
from tests.runs.processes import run, write_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of two classes, in two splits."""
    root = tmp_path_factory.mktemp("two-digits")
    data = load_digits(n_class=2)
    for index in range(160):
        folder = root / ("train" if index < 100 else "test") / str(data.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 255 / 16).round().astype("uint8")).save(folder / f"{index:04d}.png")
    return root


@pytest.fixture
def configs(tmp_path: Path, images: Path) -> Path:
    """Two tiny methods."""
    folder = tmp_path / "configs" / "catsdogs"
    folder.mkdir(parents=True)
    (folder / "_base.yaml").write_text("no config of its own")
    values = experiment(images, "unused")
    values["data"] |= {"split": "train", "heldout_split": "test"}
    values["train"]["num_epochs"] = 1
    values["evaluation"] = {"summary": True, "whitening_dimensions": 3}
    write_config(folder / "deepcluster.yaml", values | {"readout": {"merge_to": 2}})
    write_config(folder / "simclr.yaml", values | {"method": "simclr", "readout": {"num_clusters": 2}})
    return folder.parent


def arguments(configs: Path, images: Path, *others: str) -> list[str]:
    out, runs = configs.parent / "rows.json", configs.parent / "runs"
    return [f"--data={images}", f"--out={out}", f"--configs={configs}", f"--runs={runs}", *others]


def stored(configs: Path) -> dict[str, Row]:
    found: dict[str, Row] = json.loads((configs.parent / "rows.json").read_text())["rows"]
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were trained, each by a fork that has everything imported."""
    names: list[str] = []

    def train(config: Path, overrides: list[str]) -> None:
        names.append(next(value for value in overrides if value.startswith("run.dir=")).rpartition("/")[2])
        codes = run(config, overrides)
        if codes != [0]:
            raise measure.TrainingFailed(f"exit codes {codes}")

    monkeypatch.setattr(methods, "train", train)
    return names


def test_killed_and_started_again_it_goes_on(configs: Path, images: Path) -> None:
    """SIGKILL once the first method's row is there: it is not touched again, the second run is taken up or begun."""
    command = [sys.executable, "-m", "benchmarks.methods", *arguments(configs, images, "--seeds=4")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not ((configs.parent / "rows.json").exists() and "deepcluster/4" in stored(configs)):
        assert first.poll() is None, first.returncode
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = stored(configs)
    assert {row["name"] for row in before.values()} == {
        "raw pixels",
        "untrained small_convnet with Sobel",
        "deepcluster",
    }
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=True)
    after = stored(configs)
    assert set(after) - set(before) == {"simclr/4"}
    assert {name: after[name] for name in before} == before
    run_of_the_first = RunDirectory(str(configs.parent / "runs" / before["deepcluster/4"]["run"]))
    assert len(run_of_the_first.attempt_numbers()) == 1
    assert sorted(path.name for path in configs.parent.iterdir()) == ["configs", "rows.json", "runs"]
    row = after["simclr/4"]
    assert (row["name"], row["seed"], row["num_processes"]) == ("simclr", 4, 1)
    assert row["hardware"]["device"] == "cpu"
    assert row["versions"].keys() >= {"python", "torch"}
    assert row["figures"].keys() == {"knn", "linear", "final", "plain", "whitened", "neighbors"}
    (pixels,) = (row for row in after.values() if row["name"] == "raw pixels")
    assert (pixels["seed"], pixels["figures"].keys()) == (None, {"knn", "linear", "plain", "whitened", "neighbors"})
    assert "| simclr | 1\\* |" in second.stdout


def test_rows_that_are_there_stay_and_stale_ones_are_redone(configs: Path, images: Path, trained: list[str]) -> None:
    given = arguments(configs, images, "--seeds=0", "--only=deepcluster")
    assert methods.main(given) == 0
    first = stored(configs)
    assert methods.main(given) == 0
    assert stored(configs) == first
    assert len(trained) == 1
    config = configs / "catsdogs" / "deepcluster.yaml"
    config.write_text(config.read_text().replace("num_epochs: 1", "num_epochs: 2"))
    assert methods.main([*given, "--render"]) == 0
    assert len(trained) == 1
    assert methods.main(given) == 0
    second = stored(configs)
    assert len(trained) == 2
    assert len(set(trained)) == 2, "another config is another run"
    assert first.keys() == second.keys()
    changed = [name for name in first if first[name] != second[name]]
    assert changed == ["deepcluster/0"], "what it is compared with does not depend on the length of training"


def test_a_run_that_fails_does_not_stop_the_others(
    configs: Path, images: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = configs / "catsdogs" / "deepcluster.yaml"
    config.write_text(config.read_text().replace("num_clusters: 6", "num_clusters: 600"))
    assert methods.main(arguments(configs, images, "--seeds=0")) == 1
    captured = capsys.readouterr()
    assert "not measured: deepcluster, seed 0: exit codes [2]" in captured.err
    assert "| deepcluster | not measured |" in captured.out
    assert "simclr/0" in stored(configs)
    assert len(trained) == 2


def test_training_goes_on_for_as_long_as_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    script = (
        "import pathlib, sys; p = pathlib.Path(" + repr(str(count)) + "); n = len(p.read_text()) if p.exists() else 0; "
        "p.write_text('x' * (n + 1)); sys.exit([75, 75, 0, 1][n])"
    )
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    measure.train(Path("config.yaml"), ())
    assert count.read_text() == "xxx"
    with pytest.raises(measure.TrainingFailed, match="ended with exit code 1"):
        measure.train(Path("config.yaml"), ())


def test_wall_time_is_the_sum_over_attempts(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    for times in ((100.0, 103.0, 110.0), (), (500.0, 502.5)):
        number = directory.begin_attempt({}).number
        lines = "".join(json.dumps({"kind": "event", "time": time}) + "\n" for time in times)
        directory.storage.write_bytes(directory.metrics_file(number), lines.encode() + b'{"kind": "st')
    directory.begin_attempt({})  # killed before its first record
    assert measure.wall_seconds(directory) == (12.5, 2)


def test_the_digest_is_of_what_decides_the_result(configs: Path) -> None:
    def digest_of(*overrides: str, fingerprint: str = "a") -> str:
        return config_digest(load_config(configs / "catsdogs" / "deepcluster.yaml", overrides), [fingerprint])

    same = {digest_of(), digest_of("run.seed=9"), digest_of("run.dir=elsewhere"), digest_of("launch.num_processes=2")}
    assert len(same) == 1
    others = {
        digest_of("train.num_epochs=7"),
        digest_of("model.width=0.5"),
        digest_of("readout.num_clusters=3"),
        digest_of(fingerprint="b"),
    }
    assert len(others) == 4
    assert not same & others


def test_a_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "rows.json"
    first, second = RowKey("a", 0, "1"), RowKey("a", 1, "1")
    Rows(path).add(first, {"figures": {}})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, f"no space left on {descriptor}")

    monkeypatch.setattr(rows.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        Rows(path).add(second, {"figures": {}})
    assert path.read_bytes() == before
    assert Rows(path).get(first) == {"name": "a", "seed": 0, "digest": "1", "figures": {}}
    assert Rows(path).get(RowKey("a", 0, "2")) is None, "stale"


def row(seed: int | None, knn: float, seconds: float | None = None, purity: float | None = None) -> Row:
    figures: dict[str, Any] = {"knn": knn, "linear": knn + 0.1}
    if purity is not None:
        figures["final"] = {"purity_train": purity, "accuracy_heldout": purity, "nmi_train": 0.0}
    described = {} if seconds is None else {"wall_seconds": seconds}
    return {"seed": seed, "figures": figures, **described}


def test_means_and_spreads_by_hand() -> None:
    """Of 0.5, 0.6 and 0.7 the mean is 0.6, the deviation (n - 1) 0.1."""
    three = Line("three", [row(seed, 0.5 + seed / 10, 60 + 60 * seed, 0.51) for seed in range(3)])
    two = Line("two", [row(0, 0.5, 3600.0, 0.50), row(1, 0.7, 3900.0, 0.54)])
    one = Line("one", [row(7, 0.5, 59.6, 0.5)])
    lines = table.render([Line("raw pixels", [row(None, 0.25)]), three, two, one, Line("none", [])], METHODS)
    assert lines.splitlines() == [
        "| | seeds | purity, train | ACC, test | NMI, train | kNN | linear | time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| raw pixels |  |  |  |  | 0.250 | 0.350 |  |",
        "| three | 3 | 0.510 ± 0.000 | 0.510 ± 0.000 | 0.000 ± 0.000 | 0.600 ± 0.100 | 0.700 ± 0.100 | 2:00 |",
        "| two | 2\\* | 0.520 ± 0.028 | 0.520 ± 0.028 | 0.000 ± 0.000 | 0.600 ± 0.141 | 0.700 ± 0.141 | 1:02:30 |",
        "| one | 1\\* | 0.500 | 0.500 | 0.000 | 0.500 | 0.600 | 1:00 |",
        "| none | not measured | | | | | | |",
        "",
        "\\* fewer than 3 seeds",
    ]


def test_without_a_run_the_clusters_are_those_of_the_read_out_that_runs_have() -> None:
    neighbors = {"purity_train": 0.6, "accuracy_heldout": 0.5, "nmi_train": 0.25}
    pixels, trained = row(None, 0.25), row(0, 0.5, purity=0.75)
    for one in (pixels, trained):
        one["figures"]["neighbors"] = neighbors
    lines = table.render([Line("raw pixels", [pixels]), Line("trained", [trained])], METHODS).splitlines()
    assert lines[2] == "| raw pixels |  | 0.600 | 0.500 | 0.250 | 0.250 | 0.350 |  |"
    assert lines[3] == "| trained | 1\\* | 0.750 | 0.750 | 0.000 | 0.500 | 0.600 |  |"


def test_enough_seeds_are_not_marked() -> None:
    line = Line("three", [row(seed, 0.5) for seed in range(3)])
    assert table.render([line], (Column("kNN", lambda row: row["figures"]["knn"]),)).splitlines()[2:] == [
        "| three | 3 | 0.500 ± 0.000 |"
    ]


def test_pretexts_are_a_table_of_their_own_in_the_given_order(configs: Path, images: Path) -> None:
    text = (configs / "catsdogs" / "simclr.yaml").read_text()
    for name in ("catsdogs/pretext_sequence", "catsdogs/zeta", "catsdogs/pretext_joint", "catsdogs/_base2", "other"):
        (configs / f"{name}.yaml").write_text(text)
    found = methods.find_experiments(configs, str(images), [])
    names = ["deepcluster", "simclr", "pretext_joint", "pretext_sequence", "zeta"]
    assert [one.name for one in found] == names
    store = Rows(configs.parent / "rows.json")
    store.add(found[2].key(0), row(0, 0.5, 60.0, 0.5))
    first, *_, last = methods.report(found, [0, 1, 2], store).split("\n\n| | seeds |")
    assert first.startswith("The run's own final clusters")
    assert "zeta" not in last
    assert "| jigsaw |" not in last, "there is no such config here"
    assert "| deepcluster |" not in last
    assert "| pretext_joint | 1\\* | 0.000 | 0.500 | 0.600 | 1:00 |" in last
    assert "| pretext_sequence | not measured | | | | |" in last
    assert len(PRETEXTS) == 4


def test_untrained_networks_that_differ_are_rows_side_by_side(configs: Path, images: Path) -> None:
    config = configs / "catsdogs" / "simclr.yaml"
    found = methods.find_experiments(configs, str(images), [])
    assert found[0].baselines(0) == found[1].baselines(0), "of equal networks there is one"
    config.write_text(config.read_text().replace("width: 0.25", "width: 0.5"))
    store = Rows(configs.parent / "rows.json")
    found = methods.find_experiments(configs, str(images), [])
    keys = [one.baselines(0)["untrained network"] for one in found]
    assert keys[0].name == keys[1].name
    for key, knn in zip(keys, (0.5, 0.6), strict=True):
        store.add(key, row(0, knn))
    assert [store.get(key)["figures"]["knn"] for key in keys] == [0.5, 0.6]  # type: ignore[index]
    printed = methods.report(found, [0], store)
    for key, knn in zip(keys, ("0.500", "0.600"), strict=True):
        assert f"| untrained small_convnet with Sobel ({key.variant}) | 1\\* |  |  |  | {knn} |" in printed


def test_a_config_that_is_not_there_is_named(configs: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        methods.main(arguments(configs, images, "--only=swav"))
    assert "has no swav; there are deepcluster, simclr" in capsys.readouterr().err
