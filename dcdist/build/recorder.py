"""Rank 0's recorder: where the figures of a run go."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from rich.console import Console

from dcdist.config.metrics_section import MetricsSection
from dcdist.config.schema import ExperimentConfig
from dcdist.metrics.heartbeat import Heartbeat
from dcdist.metrics.jsonl import JsonLinesSink
from dcdist.metrics.progress import progress_sink
from dcdist.metrics.prometheus import Identity, PrometheusSink
from dcdist.metrics.prometheus_endpoint import Endpoint
from dcdist.metrics.prometheus_files import DiscoveryFile, TextFile
from dcdist.metrics.prometheus_outlets import Outlet
from dcdist.metrics.recorder import Recorder, Sink
from dcdist.metrics.tensorboard import TensorBoardSink
from dcdist.run_directory import TENSORBOARD, RunDirectory
from dcdist.storage import GrowingFile

logger = logging.getLogger(__name__)

_LOCAL, _ANY = "127.0.0.1", ("0.0.0.0", "::", "")


def build_recorder(
    config: ExperimentConfig,
    run_directory: RunDirectory,
    attempt: int,
    started_at: float,
    launcher: Mapping[str, Any],
) -> Recorder:
    """metrics/NNNN.jsonl, the heartbeat, and the sinks that the config asks for.

    Args:
        config: of the run.
        run_directory: its folder.
        attempt: its number.
        started_at: when the job began, unix seconds.
        launcher: who started this process: {"name", "job"}.

    Raises:
        UsageError: the certificate or the credentials of /metrics cannot be used, at a run's first start.
    """
    metrics, storage = config.metrics, run_directory.storage
    # The only one that may refuse comes first: then nothing is open yet.
    sinks: list[Sink] = []
    if metrics.prometheus_port is not None or metrics.prometheus_textfile is not None:
        identity = Identity(
            run=_run_label(run_directory),
            methods={stage.name: stage.method for stage in config.resolved_stages()},
            version=metadata.version("dcdist"),
            launcher=launcher["name"],
            job_name=launcher.get("job", ""),
            checkpoint_seconds=config.checkpoint.every_seconds,
        )
        sinks.append(PrometheusSink(identity, _outlets(metrics, identity, attempt)))
    sinks.append(JsonLinesSink(GrowingFile(storage, run_directory.metrics_file(attempt))))
    sinks.append(Heartbeat(storage, run_directory.heartbeat_file(attempt)))
    if metrics.tensorboard:
        sinks.append(TensorBoardSink(storage, TENSORBOARD, attempt))
    if metrics.progress:
        sinks.append(progress_sink(Console(stderr=True)))
    # In reverse: who waits at the end for a last look does so when all else is stored.
    return Recorder(sinks[::-1], started_at)


def _outlets(metrics: MetricsSection, identity: Identity, attempt: int) -> Callable[[CollectorRegistry], list[Outlet]]:
    def open_outlets(registry: CollectorRegistry) -> list[Outlet]:
        outlets: list[Outlet] = []
        if metrics.prometheus_port is not None:
            address = metrics.prometheus_address or (_ANY[0] if _is_job(identity.launcher) else _LOCAL)
            files = (metrics.prometheus_certificate, metrics.prometheus_private_key, metrics.prometheus_credentials)
            paths = (None if file is None else Path(file) for file in files)
            endpoint = Endpoint(registry, address, metrics.prometheus_port, *paths)
            if attempt == 1:
                endpoint.protection()  # may refuse; who resumes by itself has nobody to mend it
            outlets.append(endpoint)
            if metrics.prometheus_discovery is not None:
                folder, host = Path(metrics.prometheus_discovery), reachable_name(metrics.prometheus_host or address)
                has_tls = metrics.prometheus_certificate is not None
                outlets.append(DiscoveryFile(folder, identity.run, host, lambda: endpoint.port, has_tls))
        if metrics.prometheus_textfile is not None:
            outlets.append(TextFile(registry, Path(metrics.prometheus_textfile), identity.run, attempt))
        return outlets

    return open_outlets


def _is_job(launcher: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this runs on machines for jobs. A shell of salloc has SLURM's variables too, on a login node."""
    return launcher == "ray" or (launcher == "slurm" and "SLURM_PROCID" in environment)


def reachable_name(address: str) -> str:
    """What others call the interface that is bound: the address itself, of all interfaces that of the default route.

    Names of machines need not resolve elsewhere, or do so to a loopback address.
    """
    if address not in _ANY:
        return f"[{address}]" if ":" in address and "[" not in address else address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: no packet is sent
        except OSError:
            return socket.gethostname()
        name: str = probe.getsockname()[0]
        return name


def _run_label(run_directory: RunDirectory) -> str:
    """Whole, for two runs that were started as runs/mine in two folders are not one; without a password."""
    local_path = run_directory.storage.local_path()
    return re.sub(r"://[^/@]*@", "://", str(run_directory)) if local_path is None else str(local_path.absolute())
