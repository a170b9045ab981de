"""`dcdist evaluate voc-classification`: mean average precision of a network that is trained further on VOC's labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcdist.data.transforms import View
from dcdist.data.voc import CLASSES
from dcdist.errors import UsageError
from dcdist.evaluate.report import Report, write
from dcdist.evaluate.voc_subject import Say, VocOptions, VocSubject, open_voc_subject
from dcdist.evaluate.voc_tables import class_table, heading, notes, score_table
from dcdist.evaluation import untrained
from dcdist.evaluation.feature_sets import UNTRAINED
from dcdist.evaluation.fine_tuning import ALL, FC68
from dcdist.evaluation.voc_classification import (
    PRESETS,
    ClassificationData,
    RandomCrop,
    measure_classification,
)
from dcdist.models.backbone import Backbone

KIND = "voc-classification"
_DATA = "VOC 2007, all of trainval to test"
PUBLISHED = (
    {"name": "DeepCluster, AlexNet", FC68: 0.704, "data": _DATA, "from_memory": False},
    {"name": "batch norm's scales trained", FC68: 0.720, "data": _DATA, "from_memory": False},
    {"name": "DeepCluster, AlexNet", ALL: 0.737, "data": _DATA, "from_memory": True},
    {"name": "DeepCluster, AlexNet, YFCC100M", FC68: 0.673, ALL: 0.693, "data": _DATA, "from_memory": True},
)


@dataclass(frozen=True)
class ClassificationOptions:
    """What a person may choose of this kind alone."""

    preset: str = "deepcluster"
    image_size: int | None = None  # None: what the network was built for
    num_crops: int = 10
    train_batchnorm: bool = False


def evaluate_classification(url: str, options: VocOptions, own: ClassificationOptions) -> Report:
    """Measures and writes the report into the run.

    Raises:
        UsageError: no such run, data or preset; damaged data; a size that does not suit the network.
        RunError: the training diverges.
    """
    if own.preset not in PRESETS:
        raise UsageError(f"--preset={own.preset!r} is unknown: {', '.join(PRESETS)}")
    preset = PRESETS[own.preset]
    recipes = {mode: options.apply(preset.recipes[mode]) for mode in options.modes}
    splits = ("trainval", "test")
    with open_voc_subject(url, options, "Main", lambda voc: (voc.year("2007"), *splits)) as subject:
        crops = View(
            size=_image_size(subject, own.image_size),
            crop="random_resized",
            scale=preset.crops.scale,
            ratio=preset.crops.ratio,
            horizontal_flip=True,
            normalization=subject.normalization,
        )
        data = ClassificationData(
            train=subject.examples(subject.train, RandomCrop(crops)),
            train_labels=subject.train.split.labels(),
            test=subject.examples(subject.test, RandomCrop(crops)),
            test_labels=subject.test.split.labels(),
            view=crops,
        )

        def measure(backbone: Backbone, mode: str, seed: int, say: Say) -> Mapping[str, Any]:
            scores = measure_classification(
                backbone,
                data,
                recipes[mode],
                mode,
                subject.numerics,
                seed,
                num_crops=own.num_crops,
                train_batchnorm=own.train_batchnorm,
                progress=say,
            )
            return {
                "map": scores.mean,
                "map_eleven_points": scores.mean_eleven_points,
                "classes": dict(zip(CLASSES, scores.average_precisions, strict=True)),
                "classes_eleven_points": dict(zip(CLASSES, scores.eleven_points, strict=True)),
            }

        protocol = {
            UNTRAINED: untrained.DESCRIPTION,
            "name": "multi-label classification, trained further",
            "preset": own.preset,
            "recipes": {mode: recipe.describe() for mode, recipe in recipes.items()},
            "trained": _trained(subject.run.backbone, own.train_batchnorm),
            "loss": "binary cross-entropy, difficult classes of an image left out; summed over classes",
            "crops": {"size": crops.size, "scale": crops.scale, "ratio": crops.ratio, "mirrored": "half of them"},
            "test": f"sum of the logits of {own.num_crops} random crops; difficult images of a class left out",
            "map": "scikit-learn's average precision; eleven points: VOC 2007's rule",
        }
        report = subject.report(KIND, subject.rows(measure), protocol=protocol, published=PUBLISHED)
        write(subject.run.directory, report)
    return report


def render_classification(report: Report) -> str:
    """For the terminal."""
    columns = {"map": "mAP", "map_eleven_points": "11-point"}
    protocol = report["protocol"]
    return "\n".join(
        [
            *heading(report),
            *score_table(report, "classification", columns),
            "",
            *class_table(report, "class", "AP"),
            "",
            *notes(report, f"mAP: {protocol['map']}; {protocol['test']}"),
        ]
    )


def _image_size(subject: VocSubject, wanted: int | None) -> int:
    built_for = subject.run.config.views.image_size
    size = wanted or built_for
    backbone = subject.run.backbone
    try:
        fits = backbone.feature_shape(size) == (1, backbone.num_features)
    except (AssertionError, RuntimeError, ValueError):
        fits = False
    if not fits:
        raise UsageError(
            f"--image-size={size} does not suit the run's network: it was built for {built_for}, and its layers after "
            "the convolutions take no other size"
        )
    return size


def _trained(backbone: Backbone, train_batchnorm: bool) -> dict[str, str]:
    statistics = "batch normalisation by its running statistics"
    scales = ", its scales and shifts trained" if train_batchnorm else ""
    if any(True for _ in backbone.top.parameters()):
        partly = f"the fully connected layers and the new classifier; {statistics}{scales}"
    else:
        partly = f"the new classifier alone, for the network has no fully connected layers; {statistics}{scales}"
    return {FC68: partly, ALL: f"the whole network; {statistics}"}
