"""The command as a user types it: `dcdist train` starts two processes, which start others to load images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from tests.runs.conftest import experiment
from tests.runs.processes import write_config

ROOT = Path(__file__).resolve().parents[2]


def test_interrupted_and_typed_again(tmp_path: Path, digits_folder: Path) -> None:
    values = experiment(digits_folder, tmp_path / "run")
    values["data"]["num_workers"] = 1
    values["launch"]["num_processes"] = 2
    values["train"]["num_epochs"] = 30
    values["metrics"]["progress"] = True
    values["evaluation"] = {"summary": True, "whitening_dimensions": 8}
    config = write_config(tmp_path / "config.yaml", values)
    command = [sys.executable, "-m", "dcdist", "train", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    started = time.monotonic()
    while not list((tmp_path / "run" / "checkpoints").glob("*-train.*/COMMIT.json")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.02)
    everything = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    out, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    assert err.splitlines()[0] == "attempt 1 begins"
    assert err.splitlines()[-1] == "dcdist: Preempted: SIGINT asked the run to make room"
    assert out == ""
    for word in ("Traceback", "leaked", "Warning"):
        assert word not in err
    assert len(everything) >= 5, "launcher, two processes, and those that load images for each"
    _, alive = psutil.wait_procs(everything, timeout=10)
    assert alive == []

    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert second.stderr.startswith("attempt 2 goes on from step-")
    assert [line.split("  ")[0] for line in second.stdout.splitlines()[2:5]] == [
        "raw pixels",
        "untrained network",
        "trained network",
    ]
    assert "majority purity on training images" in second.stdout
    final = tmp_path / "run" / "assignments" / "deepcluster-final.parquet"
    assert second.stdout.splitlines()[-1] == f"the cluster of every image: {final}"
    assert final.exists()
    for word in ("Traceback", "leaked", "Warning"):
        assert word not in second.stderr
    assert json.loads((tmp_path / "run" / "attempts" / "0001.json").read_text())["ended"]["signal"] == "SIGINT"


def test_a_run_that_was_given_relative_paths_is_read_from_another_folder(tmp_path: Path, digits_folder: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").symlink_to(digits_folder)
    config = write_config(tmp_path / "config.yaml", experiment(Path("images"), Path("run")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def dcdist(folder: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "dcdist", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    dcdist(tmp_path, "train", str(config))
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (recorded["run"]["dir"], recorded["data"]["root"]) == (str(tmp_path / "run"), str(tmp_path / "images"))
    assert "NMI" in dcdist(tmp_path / "elsewhere", "evaluate", "clusters", str(tmp_path / "run"))
