"""`dcdist evaluate voc-classification|voc-detection|voc-segmentation RUN`: trains a run's network further on VOC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from dcdist.evaluate.voc_subject import VocOptions

Run = Annotated[str, typer.Argument(help="run directory (run.dir), local or any fsspec URL; it may be running")]
Data = Annotated[
    str, typer.Option(help="VOCdevkit, VOCdevkit/VOC2007, a folder that holds VOCdevkit, or a tar of any of these")
]
Split = Annotated[
    str | None,
    typer.Option(help="list in ImageSets, as trainval or 2007/trainval,2012/trainval; by default as published"),
]
Train = Annotated[str, typer.Option(help="what is trained: fc6-8 (the convolutions are frozen), all, or both")]
Iterations = Annotated[int | None, typer.Option(help="steps of SGD; by default as published", min=1)]
BatchSize = Annotated[int | None, typer.Option(help="images a step", min=1)]
LearningRate = Annotated[float | None, typer.Option(help="at first; it falls as published", min=0.0)]
WeightDecay = Annotated[float | None, typer.Option(help="of SGD", min=0.0)]
Seeds = Annotated[int, typer.Option(help="seeds 0..N-1, each trained anew: mean and spread", min=1)]
Stage = Annotated[str | None, typer.Option(help="the run as this stage left it; by default as it is")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Baselines = Annotated[bool, typer.Option(help="the untrained network beside the trained one")]
AsJson = Annotated[bool, typer.Option("--json", help="the whole report as one JSON object, for programs")]


class Chosen(NamedTuple):
    """What was chosen of SGD; None is as published."""

    iterations: int | None
    batch_size: int | None
    learning_rate: float | None
    weight_decay: float | None


def voc_classification(
    run: Run,
    data: Data,
    train_split: Split = None,
    test_split: Split = None,
    train: Train = "fc6-8,all",
    preset: Annotated[str, typer.Option(help="deepcluster, deepcluster-caffe or deepercluster")] = "deepcluster",
    iterations: Iterations = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    weight_decay: WeightDecay = None,
    image_size: Annotated[int | None, typer.Option(help="of crops; by default the network's own", min=1)] = None,
    crops: Annotated[int, typer.Option(help="random crops of a test image, whose logits are summed", min=1)] = 10,
    train_batchnorm: Annotated[
        bool, typer.Option("--train-batchnorm", help="in fc6-8, scales and shifts of batch normalisation, too")
    ] = False,
    seeds: Seeds = 1,
    stage: Stage = None,
    device: Device = "auto",
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Multi-label classification of VOC 2007, trained further: AP of each class and their mean."""
    recipe = Chosen(iterations, batch_size, learning_rate, weight_decay)
    options = _options(data, train_split, test_split, train, recipe, stage, device, seeds, baselines)
    from dcdist.evaluate.voc_classification import (
        ClassificationOptions,
        evaluate_classification,
        render_classification,
    )

    own = ClassificationOptions(preset, image_size, crops, train_batchnorm)
    _show(evaluate_classification(run, options, own), render_classification, as_json)


def voc_detection(
    run: Run,
    data: Data,
    train_split: Split = None,
    test_split: Split = None,
    train: Train = "fc6-8,all",
    iterations: Iterations = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    weight_decay: WeightDecay = None,
    image_size: Annotated[
        str, typer.Option(help="short side of images; several with commas: one at random, the last one in the test")
    ] = "600",
    proposals: Annotated[int, typer.Option(help="regions of a test image that are classified", min=1)] = 300,
    frozen_convolutions: Annotated[
        int, typer.Option(help="first convolutions that stay as they are where all is trained", min=0)
    ] = 1,
    seeds: Seeds = 1,
    stage: Stage = None,
    device: Device = "auto",
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Detection of VOC 2007 by Faster R-CNN, trained further: mAP by the eleven-point and the area rule."""
    from dcdist.errors import UsageError

    try:
        short_sides = tuple(int(text) for text in image_size.split(","))
    except ValueError as error:
        raise UsageError(f"--image-size={image_size!r} is no list of sides in pixels, as in 480,600") from error
    if min(short_sides) < 1:
        raise UsageError(f"--image-size={image_size!r}: sides are at least 1 pixel")
    recipe = Chosen(iterations, batch_size, learning_rate, weight_decay)
    options = _options(data, train_split, test_split, train, recipe, stage, device, seeds, baselines)
    from dcdist.evaluate.voc_detection import DetectionOptions, evaluate_detection, render_detection
    from dcdist.evaluation.region_network import RegionOptions

    own = DetectionOptions(
        RegionOptions(short_sides=short_sides, proposals_in_prediction=proposals), frozen_convolutions
    )
    _show(evaluate_detection(run, options, own), render_detection, as_json)


def voc_segmentation(
    run: Run,
    data: Data,
    train_split: Split = None,
    test_split: Split = None,
    train: Train = "fc6-8,all",
    iterations: Iterations = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    weight_decay: WeightDecay = None,
    image_size: Annotated[
        int | None, typer.Option(help="side of the windows that are trained on; by default 384", min=1)
    ] = None,
    seeds: Seeds = 1,
    stage: Stage = None,
    device: Device = "auto",
    baselines: Baselines = True,
    as_json: AsJson = False,
) -> None:
    """Segmentation of VOC 2012 (or 2007) by a fully convolutional network, trained further: mean IoU."""
    recipe = Chosen(iterations, batch_size, learning_rate, weight_decay)
    options = _options(data, train_split, test_split, train, recipe, stage, device, seeds, baselines)
    from dcdist.evaluate.voc_segmentation import SegmentationOptions, evaluate_segmentation, render_segmentation

    own = SegmentationOptions() if image_size is None else SegmentationOptions(image_size)
    _show(evaluate_segmentation(run, options, own), render_segmentation, as_json)


def _options(
    data: str,
    train_split: str | None,
    test_split: str | None,
    train: str,
    recipe: Chosen,
    stage: str | None,
    device: str,
    seeds: int,
    baselines: bool,
) -> VocOptions:
    from dcdist.errors import UsageError

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device={device!r} is unknown: auto, cpu or cuda")
    from dcdist.evaluate.voc_subject import VocOptions
    from dcdist.evaluation.fine_tuning import MODES

    modes = tuple(train.split(","))
    if not set(modes) <= set(MODES) or len(set(modes)) < len(modes):
        raise UsageError(f"--train={train!r} is unknown: {', '.join(MODES)}, or both with a comma")
    return VocOptions(data, train_split, test_split, modes, *recipe, stage, device, seeds, baselines)


def _show(report: Any, render: Any, as_json: bool) -> None:
    import json

    typer.echo(json.dumps(report) if as_json else render(report))
