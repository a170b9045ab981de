"""Rank 0's recorder: where the figures of a run go."""

from __future__ import annotations

import os
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
from dcdist.metrics.prometheus import Identity, Outlet, PrometheusSink
from dcdist.metrics.prometheus_endpoint import DiscoveryFile, Endpoint, TextFile
from dcdist.metrics.recorder import Recorder, Sink
from dcdist.metrics.tensorboard import TensorBoardSink
from dcdist.run_directory import TENSORBOARD, RunDirectory
from dcdist.storage import GrowingFile

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
        UsageError: the certificate or the credentials of /metrics cannot be used.
    """
    metrics, storage = config.metrics, run_directory.storage
    sinks: list[Sink] = [
        JsonLinesSink(GrowingFile(storage, run_directory.metrics_file(attempt))),
        Heartbeat(storage, run_directory.heartbeat_file(attempt)),
    ]
    if metrics.tensorboard:
        sinks.append(TensorBoardSink(storage, TENSORBOARD, attempt))
    if metrics.prometheus_port is not None or metrics.prometheus_textfile is not None:
        identity = Identity(
            run=_absolute(run_directory),
            methods={stage.name: stage.method for stage in config.resolved_stages()},
            version=metadata.version("dcdist"),
            launcher=launcher["name"],
            job_name=launcher.get("job", ""),
            checkpoint_seconds=config.checkpoint.every_seconds,
        )
        sinks.append(PrometheusSink(identity, _outlets(metrics, identity)))
    if metrics.progress:
        sinks.append(progress_sink(Console(stderr=True)))
    return Recorder(sinks, started_at)


def _outlets(metrics: MetricsSection, identity: Identity) -> Callable[[CollectorRegistry], list[Outlet]]:
    def open_outlets(registry: CollectorRegistry) -> list[Outlet]:
        outlets: list[Outlet] = []
        if metrics.prometheus_port is not None:
            address = metrics.prometheus_address
            if address is None:
                address = _LOCAL if identity.launcher == "local" else _ANY[0]
            endpoint = Endpoint(
                registry,
                address,
                metrics.prometheus_port,
                _path(metrics.prometheus_certificate),
                _path(metrics.prometheus_private_key),
                _path(metrics.prometheus_credentials),
            )
            outlets.append(endpoint)
            if metrics.prometheus_discovery is not None and endpoint.port is not None:
                target = f"{reachable_name(address)}:{endpoint.port}"
                tls = metrics.prometheus_certificate is not None
                outlets.append(DiscoveryFile(Path(metrics.prometheus_discovery), identity.run, target, tls))
        if metrics.prometheus_textfile is not None:
            outlets.append(TextFile(registry, Path(metrics.prometheus_textfile)))
        return outlets

    return open_outlets


def reachable_name(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """What others call the interface that is bound: the address itself, of all interfaces the machine's name."""
    if address in _ANY:
        return environment.get("SLURMD_NODENAME") or socket.getfqdn()
    return f"[{address}]" if ":" in address else address


def _absolute(run_directory: RunDirectory) -> str:
    """Two runs that were started as runs/mine in two folders are not one."""
    local_path = run_directory.storage.local_path()
    return str(run_directory) if local_path is None else str(local_path.absolute())


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
