"""`dcdist report RUN...`: one HTML file that shows what runs did, for people."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    runs: Annotated[list[str], typer.Argument(help="run directories (run.dir); several stand side by side")],
    out: Annotated[str | None, typer.Option(help="the file; by default report.html in the (first) run")] = None,
    data: Annotated[str | None, typer.Option(help="where the runs' images lie here; by default data.root")] = None,
) -> None:
    """Write one HTML file: losses, clusters over epochs, typical images, evaluations, time and restarts, the config."""
    from dcdist.report import write_report

    typer.echo(write_report(runs, out, data).line())
