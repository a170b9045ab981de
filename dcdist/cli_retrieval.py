"""`dcdist evaluate retrieval RUN`: finds landmarks by R-MAC vectors of a run's network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def retrieval(
    run: Annotated[str, typer.Argument(help="run directory (run.dir), local or any fsspec URL; it may be running")],
    data: Annotated[str, typer.Option(help="the images: a folder of any depth, tar or Parquet, local or a URL")],
    ground_truth: Annotated[
        Path,
        typer.Option(
            help="folder of NAME_query|good|ok|junk.txt (Oxford5k, Paris6k), or gnd_roxford5k.pkl and the like"
        ),
    ],
    whitening_data: Annotated[
        str | None, typer.Option(help="other images, on which whitening is learnt; by default vectors are not whitened")
    ] = None,
    allow_same_data: Annotated[
        bool, typer.Option("--allow-same-data", help="learn whitening on the images that are searched")
    ] = False,
    size: Annotated[int, typer.Option(help="long side of the images in pixels", min=1)] = 1024,
    levels: Annotated[int, typer.Option(help="levels of the grid of regions", min=1)] = 3,
    overlap: Annotated[float, typer.Option(help="share by which regions overlap, about", min=0, max=1)] = 0.4,
    dimensions: Annotated[
        int | None, typer.Option(help="of whitened vectors; by default 512, or the layer's channels if fewer", min=1)
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="as conv4 or features.29; by default the last map before the last pooling")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="the run as this stage left it; by default as it is")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    baselines: Annotated[bool, typer.Option(help="the untrained network beside the trained one")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="the whole report as one JSON object, for programs")] = False,
) -> None:
    """Find the images of a landmark by R-MAC; mAP over the queries, junk taken out. Nothing is trained."""
    from dcdist.errors import UsageError

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device={device!r} is unknown: auto, cpu or cuda")
    from dcdist.evaluate.retrieval import RetrievalOptions, evaluate_retrieval
    from dcdist.evaluate.retrieval_table import render

    options = RetrievalOptions(
        data=data,
        ground_truth=ground_truth,
        whitening_data=whitening_data,
        allow_same_data=allow_same_data,
        stage=stage,
        size=size,
        levels=levels,
        overlap=overlap,
        dimensions=dimensions,
        layer=layer,
        device=device,
        baselines=baselines,
    )
    report = evaluate_retrieval(run, options)
    typer.echo(json.dumps(report) if as_json else render(report))
