"""A real Ray cluster of two nodes on this machine, with the dashboard's job server."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from tests.cluster.slurm import free_ports, wait_for

RAY = str(Path(sys.executable).with_name("ray"))


class RayCluster:
    """Two nodes of one core and one "slot" each: of the processes that take a slot one fits on a node.

    `environment` leads the commands of Ray and of dcdist to it.
    """

    def __init__(self, folder: Path) -> None:
        self._port, self._dashboard_port = free_ports(2, below=10_000)  # Ray's workers take the ports from there on
        self.dashboard = f"http://127.0.0.1:{self._dashboard_port}"
        self._folder = folder
        self.prometheus_discovery = folder / "prom_metrics_service_discovery.json"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "disabled",
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # Ray's 15 would wait for all other tests
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # A dead node is noticed after seconds, and a group that was placed on it is given up soon.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self._raylets: list[psutil.Process] = []

    def start(self) -> None:
        head = ("--head", f"--port={self._port}", f"--dashboard-port={self._dashboard_port}")
        self._start_node(*head, "--include-dashboard=true", f"--temp-dir={self._folder}")
        self.start_second_node()

    def start_second_node(self) -> None:
        """Starts it (again); a job's group is sized by the nodes that are there when it starts."""
        self._start_node(f"--address=127.0.0.1:{self._port}")
        wait_for(lambda: "0.0/2.0 slot" in self.run("status"), 30, "both nodes are there")

    def _start_node(self, *options: str) -> None:
        before = {process.pid for process in self._find_raylets()}
        self.run("start", *options, "--num-cpus=1", '--resources={"slot":1}', address=None)
        (raylet,) = (process for process in self._find_raylets() if process.pid not in before)
        self._raylets.append(raylet)

    @staticmethod
    def _find_raylets() -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if process.name() == "raylet"]

    def kill_second_node(self) -> None:
        """SIGKILL to all of its processes, as when a machine dies."""
        kill_tree(self._raylets.pop())

    def stop(self) -> None:
        """Not by `ray stop`, which ends every Ray of this machine."""
        for raylet in self._raylets:
            kill_tree(raylet)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(str(self._folder) in word for word in process.cmdline()):
                    process.kill()

    def run(self, *arguments: str, address: str | None = "", check: bool = True, seconds: float = 120) -> str:
        """Output of `ray ARGUMENTS`; `address` None: without RAY_ADDRESS, else that of the cluster."""
        environment = dict(self.environment)
        if address is None:
            del environment["RAY_ADDRESS"]
        done = subprocess.run([RAY, *arguments], env=environment, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0 or not check, f"{arguments}: {done.stderr}{done.stdout}"
        return done.stdout

    def job_status(self, job: str) -> str:
        text = self.run("job", "status", f"--address={self.dashboard}", job)
        statuses = re.findall(r"PENDING|RUNNING|SUCCEEDED|FAILED|STOPPED", text.upper())
        return statuses[-1] if statuses else text

    def job_logs(self, job: str) -> str:
        return self.run("job", "logs", f"--address={self.dashboard}", job)


def kill_tree(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for victim in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
