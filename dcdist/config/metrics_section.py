"""The keys of what is written about a run while it runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dcdist.config.sections import PLACEMENT, Positive, Section, key


class MetricsSection(Section):
    """What is written about the run while it runs; docs/monitoring.md describes how Prometheus gets it."""

    every_num_steps: Positive = key(10, "steps between step records", PLACEMENT)
    progress: bool = key(True, "progress on the terminal", PLACEMENT)
    tensorboard: bool = key(True, "write RUN/tensorboard", PLACEMENT)
    prometheus_port: Annotated[int, Field(ge=0, le=65535)] | None = key(
        None, "rank 0 serves /metrics there; 0 takes a free port", PLACEMENT
    )
    prometheus_address: str | None = key(
        None, "interface of /metrics; null: all in a job of SLURM or Ray, else 127.0.0.1", PLACEMENT
    )
    prometheus_host: str | None = key(
        None, "what others call this machine, for the discovery; null: the address of its default route", PLACEMENT
    )
    prometheus_discovery: str | None = key(
        None, "folder that Prometheus watches (file_sd_configs): a file there names the port", PLACEMENT
    )
    prometheus_textfile: str | None = key(
        None, "folder of node_exporter's textfile collector, where nothing may listen", PLACEMENT
    )
    prometheus_certificate: str | None = key(None, "PEM file: /metrics speaks TLS", PLACEMENT)
    prometheus_private_key: str | None = key(None, "PEM file; null: the certificate's file has it", PLACEMENT)
    prometheus_credentials: str | None = key(None, "file with user:password that /metrics asks for", PLACEMENT)

    @model_validator(mode="after")
    def _nothing_is_asked_for_in_vain(self) -> MetricsSection:
        of_endpoint = ("discovery", "certificate", "credentials", "host")
        given = [
            f"metrics.prometheus_{name}" for name in of_endpoint if getattr(self, f"prometheus_{name}") is not None
        ]
        if given and self.prometheus_port is None:
            raise ValueError(f"{given[0]} is given without metrics.prometheus_port: 0 takes a free port")
        if self.prometheus_private_key is not None and self.prometheus_certificate is None:
            raise ValueError("metrics.prometheus_private_key is given without metrics.prometheus_certificate")
        return self
