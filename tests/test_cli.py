"""The command line: answers, exit codes, messages; nothing heavy is imported where nothing heavy is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dcdist.cli import main

ROOT = Path(__file__).resolve().parents[1]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `dcdist ARGUMENTS`, run here."""
    code = 0
    try:
        main(list(arguments))
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of two classes, and one file that does not decode."""
    for number in range(4):
        folder = tmp_path / "images" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8), (50 * number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "images" / "odd" / "broken.jpg").write_bytes(b"nothing")
    return tmp_path / "images"


@pytest.mark.parametrize("command", [[], ["train"], ["stop"], ["checkpoints"], ["data"], ["data", "pack"]])
def test_help_and_missing_arguments(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0
    assert "Usage:" in out
    code, out, err = call(capsys, *command)
    assert code == 2
    assert "Usage:" in out + err


def modules_and_message(*arguments: str) -> tuple[set[str], str]:
    script = (
        "import json, sys\n"
        "from dcdist.cli import main\n"
        f"try:\n    main({list(arguments)!r})\n"
        "except SystemExit:\n    pass\n"
        "print('MODULES', json.dumps(sorted(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    said, _, modules = done.stdout.rpartition("MODULES ")
    return set(json.loads(modules)), said + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "Usage:"),
        (["train", "configs/deepcluster_digits.yaml", "trian.num_epochs=2"], "unknown key trian; did you mean train?"),
    ],
)
def test_help_and_a_typo_need_no_torch(arguments: list[str], words: str) -> None:
    loaded, message = modules_and_message(*arguments)
    assert words in message
    assert not {"torch", "pyarrow", "sklearn", "numpy", "faiss"} & loaded


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "configs/nothing.yaml"], "configs/nothing.yaml"),
        (["train", "configs/deepcluster_digits.yaml", "train.num_epochs"], "train.num_epochs"),
        (["train", "configs/deepcluster_digits.yaml", "train.lerning_rate=1"], "train.learning_rate"),
        (["stop", "/nowhere/run"], "/nowhere/run"),
        (["checkpoints", "/nowhere/run"], "/nowhere/run"),
        (["data", "info", "/nowhere/images"], "/nowhere/images"),
        (["data", "pack", "/nowhere/images", "/tmp/never-written"], "/nowhere/images"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert words in err
    assert err.startswith("dcdist: ")


def test_yaml_that_does_not_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: [")
    code, _, err = call(capsys, "train", str(tmp_path / "config.yaml"))
    assert code == 2
    assert f"{tmp_path / 'config.yaml'}" in err
    assert "line 1" in err


def test_info_and_pack(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "data", "info", str(images))
    assert code == 0
    assert "images       5 (" in out
    assert "odd/broken.jpg" in out
    code, out, _ = call(capsys, "data", "pack", str(images), str(tmp_path / "packed"))
    assert code == 0
    assert "5 images" in out
    code, _, err = call(capsys, "data", "pack", str(images), str(tmp_path / "packed"))
    assert code == 2
    assert str(tmp_path / "packed") in err
    assert "--overwrite" in err
    assert call(capsys, "data", "pack", str(images), str(tmp_path / "packed"), "--overwrite")[0] == 0
    code, out, _ = call(capsys, "data", "info", str(tmp_path / "packed"))
    assert code == 0
    assert "images       5 (" in out


def test_make_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "data", "make-digits", str(tmp_path / "digits"))
    assert code == 0
    assert "1,797 images" in out
    code, _, err = call(capsys, "data", "make-digits", str(tmp_path / "digits"))
    assert code == 2
    assert "--overwrite" in err


@pytest.mark.parametrize(("local_rank", "speaks"), [("0", True), ("1", False)])
def test_one_process_of_each_machine_says_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local_rank: str, speaks: bool
) -> None:
    """The config may lie on the disk of rank 0's machine alone."""
    for name, value in {"RANK": "4", "WORLD_SIZE": "8", "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        main(["train", "nowhere.yaml"])
    assert error.value.code == 2
    assert ("nowhere.yaml" in capsys.readouterr().err) is speaks


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),  # each would otherwise drive a run of its own on Ray
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2", "RAY_ADDRESS": "10.0.0.1:6379"}, False),  # a job of a Ray that srun started
        ({"RANK": "0", "RAY_ADDRESS": "10.0.0.1:6379"}, True),
    ],
)
def test_a_process_of_srun_joins_the_others_unless_it_is_a_job_of_ray(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], joins: bool
) -> None:
    for name in ("RANK", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_STEP_ID": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("dcdist.engine.preemption.SignalFlag.install", lambda flag: flag)
    called: list[str] = []
    monkeypatch.setattr("dcdist.worker.work", lambda *_: called.append("work") or 0)
    monkeypatch.setattr("dcdist.launch.ray.run_on_ray", lambda *_: called.append("ray") or 0)
    code, _, err = call(capsys, "train", "configs/deepcluster_digits.yaml", "launch.backend=ray")
    assert (code, err) == (0, "")
    assert called == (["work"] if joins else ["ray"])


def test_a_batch_script_is_told_how_the_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(name, value)
    config = ("configs/deepcluster_digits.yaml", f"run.dir={tmp_path}")
    for restarts, expected in enumerate(("75\n", "75\n", "1\n")):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        code, out, err = call(capsys, "verdict", *config, "--exit-code", "137")
        assert (code, out) == (0, expected)
    assert err.startswith("dcdist: not started again: 3 attempts in a row ended without a new checkpoint")
    code, out, _ = call(capsys, "verdict", str(tmp_path / "gone.yaml"), "--exit-code", "137")
    assert (code, out) == (2, ""), "a machine that has lost its files says nothing of the run"
