"""Jobs under SLURM by submitit. It writes the batch script and starts a task a device; what a job does when it is
preempted, stopped or done is the business of dcdist's own process and of slurm_job.sh, as in the scripts by hand.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdist.config.load import to_yaml
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import UsageError
from dcdist.launch.base import with_absolute_paths
from dcdist.run_directory import RunDirectory

SHELL_FUNCTIONS = Path(__file__).with_name("slurm_job.sh")
DCDIST = (sys.executable, "-m", "dcdist")
# A process that ends must not take the others with it: they notice, save and say how the run stands.
SRUN = ("--kill-on-bad-exit=0", "--wait=0", "--open-mode=append")


@dataclass(frozen=True)
class SlurmResources:
    """What to ask SLURM for; None leaves it to the cluster's defaults.

    `others` are further options of sbatch by their long names ("constraint", "exclude"), "" for one without a value.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    job_name: str | None = None
    signal_seconds: int = 180
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_tasks_per_node(self) -> int:
        """One a GPU; without GPUs as many as asked for."""
        return self.gpus_per_node or self.tasks_per_node or 1

    def check(self) -> None:
        """Raises UsageError where the numbers do not go together, or SLURM is not here or has no such partition."""
        if self.nodes < 1 or self.gpus_per_node < 0 or self.num_tasks_per_node < 1:
            raise UsageError(
                f"--nodes {self.nodes} --gpus-per-node {self.gpus_per_node} --tasks-per-node {self.tasks_per_node}: "
                "expected at least one node and one task, and no negative number of GPUs"
            )
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise UsageError(
                f"--tasks-per-node {self.tasks_per_node} does not go with --gpus-per-node {self.gpus_per_node}: each "
                "GPU gets one task; leave --tasks-per-node out"
            )
        missing = [name for name in ("sbatch", "srun", "sinfo") if shutil.which(name) is None]
        if missing:
            raise UsageError(
                f"{', '.join(missing)} not found in PATH: submit from a machine with SLURM's commands (a login node)"
            )
        if self.partition is not None:
            there = _partitions()
            for name in self.partition.split(","):
                if name not in there:
                    raise UsageError(f"--partition {name}: SLURM has no such partition, it has {', '.join(there)}")


def _partitions() -> list[str]:
    listing = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    if listing.returncode:
        raise UsageError(f"SLURM does not answer: {_one_line(listing.stderr)}")
    return sorted(set(listing.stdout.split()))


@dataclass(frozen=True)
class TrainTask:
    """What submitit calls in each task. It becomes `dcdist train`: submitit's handlers, which would ignore SIGTERM and
    requeue on their own, are gone with the program that set them.
    """

    config_file: str

    def __call__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [*DCDIST, "train", self.config_file])


class SlurmSubmission:
    """One run as a SLURM job.

    Args:
        config: the experiment; what it says now is what runs, also after a requeue.
        resources: what to ask for.
        folder: for the batch script, the config and the tasks' logs, seen by all nodes; by default in the run's.
    """

    def __init__(self, config: ExperimentConfig, resources: SlurmResources, folder: Path | None = None) -> None:
        resources.check()
        self._config = with_absolute_paths(config)
        self._resources = resources
        local_run = RunDirectory(config.run.dir).storage.local_path()
        self.folder = (folder or (local_run / "slurm" if local_run else Path("slurm-jobs"))).absolute()
        self._config_file = self.folder / f"config-{os.urandom(4).hex()}.yaml"
        try:
            import submitit
        except ImportError as error:
            raise UsageError("submitit is not installed: pip install 'dcdist[slurm]'") from error
        self._executor = submitit.SlurmExecutor(self.folder)
        self._executor.update_parameters(**self._parameters())

    def _parameters(self) -> dict[str, Any]:
        asked = self._resources
        others: dict[str, Any] = {"requeue": True, **{name: value or True for name, value in asked.others.items()}}
        if asked.time is not None:
            others["time"] = asked.time
        if asked.mem is not None:
            others["mem"] = asked.mem
        if asked.gpus_per_node:
            others["gpus_per_node"] = asked.gpus_per_node
        srun = [*SRUN, f"--ntasks-per-node={asked.num_tasks_per_node}"]
        if asked.cpus_per_task is not None:
            srun.append(f"--cpus-per-task={asked.cpus_per_task}")
        optional = {name: getattr(asked, name) for name in ("partition", "account", "qos", "cpus_per_task")}
        return {
            **{name: value for name, value in optional.items() if value is not None},
            "job_name": asked.job_name or Path(self._config.run.dir).name,
            "nodes": asked.nodes,
            "ntasks_per_node": asked.num_tasks_per_node,
            "signal_delay_s": asked.signal_seconds,
            "setup": SHELL_FUNCTIONS.read_text().splitlines(),
            "teardown": [f"finish_job $? {shlex.join([*DCDIST, 'verdict', str(self._config_file)])}"],
            "srun_args": srun,
            "additional_parameters": others,
        }

    def script(self) -> str:
        """The whole batch script."""
        return str(self._executor._make_submission_file_text(self._executor._submitit_command_str, "dry-run"))

    def submit(self) -> str:
        """Hands the job to SLURM; returns its id. Raises UsageError with SLURM's words where it refuses."""
        import submitit

        self.folder.mkdir(parents=True, exist_ok=True)
        self._config_file.write_text(to_yaml(self._config))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what sbatch says
                return str(self._executor.submit(TrainTask(str(self._config_file))).job_id)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UsageError(f"sbatch refuses the job: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
