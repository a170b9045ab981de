"""What is handed to SLURM, and what is refused before anything is."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.runs import attempts
from tests.cluster.slurm import Slurm, free_ports
from tests.cluster.test_slurm import ROOT, SCRIPT, dcdist, sbatch

KEPT = Path(__file__).with_name("rendered") / "slurm.sh"


def test_a_dry_run_prints_the_whole_script(slurm: Slurm, config: Path) -> None:
    """As kept in rendered/slurm.sh; DCDIST_REGENERATE=1 rewrites it."""
    options = ("--nodes=4", "--gpus-per-node=8", "--cpus-per-task=12", "--partition=low,high", "--time=1-00:00:00")
    more = ("--mem=200G", "--account=vision", "--sbatch=constraint=h200", "--sbatch=exclusive", "--job-name=alexnet")
    script = dcdist(slurm, "submit", "slurm", str(config), *options, *more, "--dry-run")
    script = script.replace(str(config.parent), "/shared").replace(sys.executable, "python")
    script = re.sub(r"config-[0-9a-f]{8}", "config-00000000", script)
    if os.environ.get("DCDIST_REGENERATE"):
        KEPT.write_text(script)
    assert script == KEPT.read_text()
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--partition=nosuch",), "dcdist: --partition nosuch: SLURM has no such partition, it has high, low\n"),
        (("--nodes=0",), "dcdist: --nodes 0 --gpus-per-node 0 --tasks-per-node None: expected at least one node"),
        (("--gpus-per-node=4", "--tasks-per-node=2"), "dcdist: --tasks-per-node 2 does not go with --gpus-per-node 4"),
        (("--sbatch=bogus=1",), "dcdist: sbatch refuses the job: sbatch: unrecognized option '--bogus=1'"),
        (("--time=soon",), "dcdist: sbatch refuses the job: sbatch: error: Invalid --time specification"),
        (("train.num_epoch=3",), "did you mean train.num_epochs"),
        (("--partitio=low",), "No such option: --partitio"),
    ],
)
def test_a_wrong_option_is_one_clear_line(slurm: Slurm, config: Path, options: tuple[str, ...], message: str) -> None:
    said = dcdist(slurm, "submit", "slurm", str(config), *options, code=2)
    assert message in said
    assert "Traceback" not in said
    assert said.count("\n") == 1 or "Usage:" in said
    assert slurm.run("squeue", "-h") == ""


def test_without_slurm_its_commands_are_named(slurm: Slurm, config: Path, tmp_path: Path) -> None:
    said = dcdist(slurm, "submit", "slurm", str(config), code=2, PATH=str(tmp_path))
    assert said == (
        "dcdist: sbatch, srun, sinfo not found in PATH: submit from a machine with SLURM's commands (a login node)\n"
    )


def test_an_array_is_as_many_runs(slurm: Slurm, config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["train"]["num_epochs"] = 1
    config.write_text(yaml.safe_dump(values))
    options = ("--array=1-2", "--nodes=1", "--gpus-per-node=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=5")
    folder = config.parent
    environment = {
        "DCDIST_CONFIG": str(config),
        "DCDIST_RUN_DIR": f"{folder}/runs/%a",
        "DCDIST_OVERRIDES": "run.seed=%a",
    }
    job = sbatch(slurm, folder, *options, SCRIPT, "data.num_workers=0", **environment)
    for task in ("1", "2"):
        slurm.finish(f"{job}_{task}")
        (attempt,) = attempts(folder / "runs" / task)
        assert attempt["ended"]["exit_code"] == 0
        assert attempt["num_processes"] == 2  # one a GPU
        assert (attempt["launcher"]["name"], attempt["launcher"]["job"]) == ("slurm", f"{job}_{task}")
        assert yaml.safe_load((folder / "runs" / task / "config.yaml").read_text())["run"]["seed"] == int(task)


def test_an_array_on_one_run_directory_is_refused(slurm: Slurm, config: Path) -> None:
    options = ("--array=1", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=5")
    job = sbatch(slurm, config.parent, *options, SCRIPT, str(config))
    slurm.wait(f"{job}_1", "FAILED")
    assert slurm.job(f"{job}_1")["ExitCode"] == "2:0"
    (log,) = config.parent.glob("*.log")
    assert re.fullmatch("dcdist: the tasks of an array need different run directories: .*\n", log.read_text())


def test_both_scripts_differ_in_their_network_alone() -> None:
    alexnet, vgg16 = (ROOT / "slurm" / f"deepcluster_{name}.sh" for name in ("alexnet", "vgg16"))
    assert vgg16.read_text().replace("vgg16", "alexnet").replace("VGG-16", "AlexNet") == alexnet.read_text()


def test_the_doctor_inside_a_job(slurm: Slurm, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "dcdist", "doctor", f"--run-dir={tmp_path}/run", "--device=cpu")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    said = slurm.run("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", *command, **meeting)
    assert "FAIL  " not in said, said
    assert re.search(r"^ok    launcher .*SLURM.* rank 0 of 2", said, re.MULTILINE), said
    assert re.search(r"^ok    process group .*2 processes", said, re.MULTILINE), said
    assert re.search(r"^ok    run storage ", said, re.MULTILINE), said
