"""A real SLURM of two nodes on this machine: its daemons, and the few commands that tests give it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
GONE = "job is not known any more"
_LIVE = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "PREEMPTED")

# GraceTime: between the preemption's SIGTERM and SIGKILL. SlurmdTimeout: a node that is silent for so long is down.
_CONF = """
ClusterName=dcdist
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=5
SlurmdTimeout=5
SlurmctldTimeout=30
InactiveLimit=0
OverTimeLimit=0
SchedulerParameters=sched_interval=1,bf_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
JobCompType=jobcomp/none
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node_ports[0]} CPUs=4 RealMemory=8000 Gres=gpu:4
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node_ports[1]} CPUs=4 RealMemory=8000 Gres=gpu:4
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[1-2] PriorityTier=10
"""


def missing_daemons() -> list[str]:
    return [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


class Slurm:
    """The daemons of one cluster, its files in `folder`. Commands find it by SLURM_CONF in `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        controller_port, *node_ports = free_ports(3)
        self._conf = folder / "slurm.conf"
        self._conf.write_text(_CONF.format(folder=folder, controller_port=controller_port, node_ports=node_ports))
        for card in range(4):  # files that stand for GPUs: SLURM counts them, nothing opens them
            (folder / f"card{card}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/card[0-3]\n")
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.environment = {**kept, "SLURM_CONF": str(self._conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start(
            "munged",
            *("--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"),
            *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
            f"--seed-file={self.folder}/munged.seed",
        )
        wait_for((self.folder / "munge.socket").exists, 10, "munged opens its socket")
        self._start("slurmctld", "-D", "-c", "-f", str(self._conf))
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Starts a node's slurmd (again) and waits until jobs may run there."""
        self._start(f"slurmd-{node}", "-D", "-N", node, "-f", str(self._conf))
        wait_for(lambda: self.node_state(node) in ("idle", "mix", "alloc"), 60, f"node {node} is up")

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        command = [name.partition("-")[0], *arguments]
        self._daemons[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def kill_node(self, node: str, with_tasks: bool) -> None:
        """SIGKILL to a node's slurmd; `with_tasks`: to all that it started too, as when a machine dies."""
        daemon = psutil.Process(self._daemons[f"slurmd-{node}"].pid)
        victims = [daemon]
        if with_tasks:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if process.environ().get("SLURMD_NODENAME") == node:
                        victims += [process, *(step for step in process.parents() if "slurmstepd" in step.name())]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        self._daemons.pop(f"slurmd-{node}").wait()

    def clear(self) -> None:
        """Cancels what a test left, and brings back the nodes that it killed."""
        for node in NODES:
            if f"slurmd-{node}" not in self._daemons:
                self.start_node(node)
        if self.run("squeue", "-h").strip():
            self.run("scancel", "--user=root", check=False)
            wait_for(lambda: not self.run("squeue", "-h").strip(), 60, "all jobs are gone")

    def stop(self) -> None:
        """Cancels what runs and ends every daemon, and every process that a job left."""
        self.run("scancel", "--user=root", "--full", check=False)
        wait_for(lambda: not self.run("squeue", "-h").strip(), 60, "all jobs are gone", fail=False)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("SLURM_CONF") == str(self._conf):
                    process.kill()
        for daemon in self._daemons.values():
            daemon.wait()

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Output of a command. Raises AssertionError with its stderr where it fails and `check`."""
        everything = self.environment | environment
        done = subprocess.run(command, env=everything, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-n", node, "-p", "low", "-o", "%t", check=False).strip().rstrip("*~#!%$@^-")

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`; JobState is GONE for one that SLURM has forgotten."""
        text = self.run("scontrol", "show", "job", "-o", job, check=False)
        return dict(re.findall(r"(\S+?)=(\S*)", text)) or {"JobState": GONE, "Restarts": "0"}

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def finish(
        self, job: str, meanwhile: Callable[[], None] = lambda: None, seconds: float = 180, state: str = "COMPLETED"
    ) -> None:
        """Returns when the job is done. Whenever it is requeued it starts at once, not after SLURM's two minutes.

        `meanwhile` is called again and again; `state` is what the job should end as.
        """

        def is_done() -> bool:
            meanwhile()
            found = self.state(job)
            if found == "PENDING":
                time.sleep(1)  # the nodes still end its processes of before
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            if found in _LIVE:
                return False
            time.sleep(2)  # on its way back into the queue a job is FAILED or NODE_FAIL for a moment
            return self.state(job) == found

        wait_for(is_done, seconds, f"job {job} is done", lambda: str(self.job(job)))
        assert self.state(job) == state, self.job(job)

    def wait(self, job: str, *states: str, seconds: float = 90) -> str:
        """Returns the job's state once it is one of those."""
        what = f"job {job} gets {' or '.join(states)}"
        wait_for(lambda: self.state(job) in states, seconds, what, lambda: self.state(job))
        return self.state(job)


def wait_for(
    condition: Callable[[], object],
    seconds: float,
    what: str,
    found: Callable[[], str] = lambda: "not yet",
    fail: bool = True,
) -> None:
    """Polls until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            assert not fail, f"waited {seconds} s until {what}: {found()}"
            return
        time.sleep(0.1)


def free_ports(count: int, below: int = 65_536) -> list[int]:
    """Ports of this machine that nobody listens on."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", 0 if below > 60_000 else random.randrange(2_000, below)))
                found.append(probe.getsockname()[1])
    return found
