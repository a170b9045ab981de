"""`dcdist export RUN --out FILE`: a run's network for programs without dcdist."""

from __future__ import annotations

from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="run directory (run.dir), local or any fsspec URL; it may be running")],
    out: Annotated[str, typer.Option(help="FILE.safetensors or FILE.onnx, local or any fsspec URL")],
    stage: Annotated[str | None, typer.Option(help="the run as this stage left it; by default as it is")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there already")] = False,
) -> None:
    """Write the network to one file that torchvision, timm or any ONNX runtime loads, and a card beside it."""
    from dcdist.export import export as write

    typer.echo("\n".join(write(run, out, stage, overwrite).lines()))
