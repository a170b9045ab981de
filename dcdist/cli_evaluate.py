"""`dcdist evaluate knn|linear|clusters RUN`: what a run's features are worth, beside raw pixels and no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdist.cli_processes import NumProcesses, share_out

if TYPE_CHECKING:
    from dcdist.errors import ExitCode
    from dcdist.member import Member

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
    context: typer.Context,
    run: Run,
    preset: Annotated[
        str,
        typer.Option(
            help="quick: logistic regression of the backbone's output; or SGD on layers as published: deepcluster, "
            "deepcluster-vgg16, goyal-imagenet, goyal-places, swav"
        ),
    ] = "quick",
    layers: Annotated[str | None, typer.Option(help="with commas; by default all convolutions or blocks")] = None,
    mlp: Annotated[bool, typer.Option("--mlp", help="also a perceptron on the last layer")] = False,
    ten_crop: Annotated[bool, typer.Option("--ten-crop", help="score by ten crops of each image")] = False,
    epochs: Annotated[int | None, typer.Option(help="instead of the preset's", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="instead of the preset's", min=0)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="instead of the preset's", min=0)] = None,
    batch_size: Annotated[int | None, typer.Option(help="of all processes, instead of the preset's", min=1)] = None,
    cache: Annotated[
        str | None, typer.Option(help="folder for features of central crops, which are then what is trained on")
    ] = None,
    num_processes: NumProcesses = None,
    stage: Stage = None,
    data: Data = None,
    split: Split = None,
    heldout_split: HeldoutSplit = None,
    device: Device = "auto",
    seeds: Annotated[int | None, typer.Option(help="seeds 0..N-1; by default 3, of SGD 1", min=1)] = None,
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Train linear classifiers on frozen features of the training images; score them on held-out ones."""
    from dcdist.errors import ExitCode, UsageError

    sgd = {
        "--layers": layers,
        "--mlp": mlp or None,
        "--ten-crop": ten_crop or None,
        "--epochs": epochs,
        "--learning-rate": learning_rate,
        "--weight-decay": weight_decay,
        "--batch-size": batch_size,
        "--cache": cache,
        "--num-processes": num_processes,
    }
    if preset == "quick":
        given = [name for name, value in sgd.items() if value is not None]
        if given:
            raise UsageError(
                f"{given[0]} means nothing to --preset=quick: choose another preset, as in --preset deepcluster"
            )
        _evaluate("linear", run, baselines, as_json, stage, data, split, heldout_split, device, num_seeds=seeds or 3)
        return

    def share(member: Member) -> ExitCode:
        import json

        from dcdist.evaluate.layers import LayerOptions, evaluate_layers, render_layers

        options = LayerOptions(
            stage=stage,
            data=data,
            split=split,
            heldout_split=heldout_split,
            device=device,
            preset=preset,
            layers=tuple(layers.split(",")) if layers else (),
            mlp=mlp,
            ten_crop=ten_crop,
            num_seeds=seeds or 1,
            num_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            cache=cache,
            baselines=baselines,
        )
        report = evaluate_layers(run, options, member)
        if report is not None:
            typer.echo(json.dumps(report) if as_json else render_layers(report))
        return ExitCode.DONE

    raise share_out(context, num_processes, device, share)


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
