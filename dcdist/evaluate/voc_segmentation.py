"""`dcdist evaluate voc-segmentation`: mean intersection over union of a convolutional network on a run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdist.data.voc import CLASSES, Voc
from dcdist.data.voc_objects import read_mask
from dcdist.errors import UsageError
from dcdist.evaluate.report import Report, write
from dcdist.evaluate.voc_subject import Images, Say, VocOptions, open_voc_subject
from dcdist.evaluate.voc_tables import class_table, heading, notes, score_table
from dcdist.evaluation import untrained
from dcdist.evaluation.feature_sets import UNTRAINED
from dcdist.evaluation.fine_tuning import ALL, FC68
from dcdist.evaluation.voc_segmentation import (
    CROP_SIZE,
    RECIPE,
    RandomWindow,
    SegmentationData,
    WholePicture,
    describe_head,
    measure_segmentation,
)
from dcdist.models.backbone import Backbone

KIND = "voc-segmentation"
_DATA = "VOC 2012, all of train to val, FCN-32s"
PUBLISHED = (
    {"name": "DeepCluster, AlexNet", FC68: 0.432, ALL: 0.451, "data": _DATA, "from_memory": True},
    {"name": "DeepCluster, AlexNet, YFCC100M", FC68: 0.392, ALL: 0.422, "data": _DATA, "from_memory": True},
)


@dataclass(frozen=True)
class SegmentationOptions:
    """What a person may choose of this kind alone."""

    crop_size: int = CROP_SIZE


def evaluate_segmentation(url: str, options: VocOptions, own: SegmentationOptions) -> Report:
    """Measures and writes the report into the run.

    Raises:
        UsageError: no such run or data; damaged data; a network without a map of positions.
        RunError: the training diverges.
    """
    recipe = options.apply(RECIPE)
    with open_voc_subject(url, options, "Segmentation", _default_split) as subject:
        _require_classes(subject.train, _examine_masks(subject.train))
        _examine_masks(subject.test)
        data = SegmentationData(
            train=subject.examples(subject.train, RandomWindow(own.crop_size)),
            test=subject.examples(subject.test, WholePicture()),
            normalization=subject.normalization,
        )

        def measure(backbone: Backbone, mode: str, seed: int, say: Say) -> Mapping[str, Any]:
            found = measure_segmentation(backbone, data, recipe, mode, subject.numerics, seed, progress=say)
            ious = found.intersections_over_unions()
            return {
                "mean_iou": found.mean(),
                "pixel_accuracy": found.pixel_accuracy(),
                "num_classes": sum(iou is not None for iou in ious),
                "classes": dict(zip(("background", *CLASSES), ious, strict=True)),
            }

        protocol = {
            UNTRAINED: untrained.DESCRIPTION,
            "name": "fully convolutional network, trained further",
            "recipe": recipe.describe(),
            "trained": _trained(),
            "network": describe_head(subject.run.backbone) + ", bilinear between positions",
            "windows": f"{own.crop_size} x {own.crop_size} pixels of images scaled by 0.5 to 2, half of them mirrored",
            "test": "whole images; pixels whose mask is 255 do not count",
            "mean_iou": "over the classes that occur in the masks or among the predictions",
        }
        report = subject.report(KIND, subject.rows(measure), protocol=protocol, published=PUBLISHED)
        write(subject.run.directory, report)
    return report


def render_segmentation(report: Report) -> str:
    """For the terminal."""
    protocol = report["protocol"]
    return "\n".join(
        [
            *heading(report),
            *score_table(report, "segmentation", {"mean_iou": "mean IoU", "pixel_accuracy": "pixels right"}),
            "",
            *class_table(report, "class", "IoU"),
            "",
            *notes(
                report,
                f"network: {protocol['network']}",
                f"mean IoU: {protocol['mean_iou']}; -: neither in the masks nor predicted",
            ),
        ]
    )


def _default_split(voc: Voc) -> tuple[str, str, str]:
    """The masks of VOC 2012's test images were never published, those of 2007 were."""
    year = voc.year("2012")
    return (year, "trainval", "test") if year == "2007" else (year, "train", "val")


def _examine_masks(images: Images) -> set[int]:
    """The values of all pixels."""
    masks = (read_mask(image, *shape) for image, shape in zip(images.images, images.shapes, strict=True))
    return {value for mask in masks for value in np.unique(mask).tolist()}


def _require_classes(images: Images, present: set[int]) -> None:
    for index, name in enumerate(CLASSES, start=1):  # 0 is the background
        if index not in present:
            files = " and ".join(str(part.file) for part in images.split.sets)
            raise UsageError(
                f"{files}: no mask of these {len(images.images)} images shows a {name}, so there is nothing to learn "
                "of this class; take a list with all classes"
            )


def _trained() -> dict[str, str]:
    statistics = "batch normalisation by its running statistics"
    return {
        FC68: f"what comes after the convolutions, those frozen; {statistics}",
        ALL: f"the whole network; {statistics}",
    }
