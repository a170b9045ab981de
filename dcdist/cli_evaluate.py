"""`dcdist evaluate knn|linear|clusters RUN`: what a run's features are worth, beside raw pixels and no training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

evaluate_app = typer.Typer(
    help="Score a run's features or clusters against labels, from its folder alone.", no_args_is_help=True
)

Run = Annotated[str, typer.Argument(help="run directory (run.dir), local or any fsspec URL; it may be running")]
Stage = Annotated[str | None, typer.Option(help="the run as this stage left it; by default as it is")]
Data = Annotated[str | None, typer.Option(help="labelled images elsewhere; by default the run's data.root")]
Split = Annotated[str | None, typer.Option(help="images that vote, teach or are clustered; none: all of --data")]
HeldoutSplit = Annotated[str | None, typer.Option(help="images that are scored; none: there are none held out")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Seeds = Annotated[int, typer.Option(help="seeds 0..N-1 of what is random", min=1)]
Baselines = Annotated[bool, typer.Option(help="raw pixels and the untrained network beside the trained one")]
AsJson = Annotated[bool, typer.Option("--json", help="the whole report as one JSON object, for programs")]


@evaluate_app.command("knn")
def knn(
    run: Run,
    neighbors: Annotated[str, typer.Option(help="how many vote; several with commas")] = "10,20,100,200",
    stage: Stage = None,
    data: Data = None,
    split: Split = None,
    heldout_split: HeldoutSplit = None,
    device: Device = "auto",
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Classify held-out images by their nearest training images; without held-out images, each by the others."""
    from dcdist.errors import UsageError

    try:
        counts = tuple(int(text) for text in neighbors.split(","))
    except ValueError as error:
        raise UsageError(f"--neighbors={neighbors!r} is no list of numbers, as in 10,20,100") from error
    _evaluate("knn", run, baselines, as_json, stage, data, split, heldout_split, device, neighbors=counts)


@evaluate_app.command("linear")
def linear(
    run: Run,
    stage: Stage = None,
    data: Data = None,
    split: Split = None,
    heldout_split: HeldoutSplit = None,
    device: Device = "auto",
    seeds: Seeds = 3,
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Train a linear classifier on frozen features of the training images; score it on held-out ones."""
    _evaluate("linear", run, baselines, as_json, stage, data, split, heldout_split, device, num_seeds=seeds)


@evaluate_app.command("clusters")
def clusters(
    run: Run,
    stage: Stage = None,
    data: Data = None,
    split: Split = None,
    heldout_split: HeldoutSplit = None,
    device: Device = "auto",
    seeds: Seeds = 3,
    whitening_dimensions: Annotated[
        int | None, typer.Option(help="components of the whitened read-out; by default as in the config", min=1)
    ] = None,
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Compare clusters with classes: the run's final ones, and K = classes by k-means and Ward's rule."""
    others = {"num_seeds": seeds, "whitening_dimensions": whitening_dimensions}
    _evaluate("clusters", run, baselines, as_json, stage, data, split, heldout_split, device, **others)


def _evaluate(
    kind: str,
    run: str,
    baselines: bool,
    as_json: bool,
    stage: str | None,
    data: str | None,
    split: str | None,
    heldout_split: str | None,
    device: str,
    **others: Any,
) -> None:
    import json

    from dcdist.errors import UsageError

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device={device!r} is unknown: auto, cpu or cuda")
    from dcdist.evaluate import evaluate, render
    from dcdist.evaluate.measured import Options
    from dcdist.evaluation.feature_sets import TRAINED

    if not baselines:
        others["feature_sets"] = (TRAINED,)
    options = Options(stage=stage, data=data, split=split, heldout_split=heldout_split, device=device, **others)
    report = evaluate(run, (kind,), options)[kind]
    typer.echo(json.dumps(report) if as_json else render(report))
