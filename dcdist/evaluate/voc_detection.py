"""`dcdist evaluate voc-detection`: mean average precision of Faster R-CNN on a run's network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcdist.data.voc import CLASSES
from dcdist.data.voc_objects import VocObjects, read_objects
from dcdist.errors import UsageError
from dcdist.evaluate.report import Report, write
from dcdist.evaluate.voc_subject import Images, Say, VocOptions, open_voc_subject
from dcdist.evaluate.voc_tables import class_table, heading, notes, score_table
from dcdist.evaluation import untrained
from dcdist.evaluation.feature_sets import UNTRAINED
from dcdist.evaluation.fine_tuning import ALL, FC68
from dcdist.evaluation.region_network import RegionOptions, region_parts
from dcdist.evaluation.voc_detection import RECIPE, DetectionData, WholeImage, measure_detection
from dcdist.models.backbone import Backbone

KIND = "voc-detection"
_DATA = "VOC 2007, all of trainval to test, Fast R-CNN on selective search's regions (here: Faster R-CNN)"
PUBLISHED = (
    {"name": "DeepCluster, AlexNet", FC68: 0.514, ALL: 0.554, "data": _DATA, "from_memory": True},
    {"name": "DeepCluster, AlexNet, YFCC100M", FC68: 0.456, ALL: 0.530, "data": _DATA, "from_memory": True},
    {"name": "DeepCluster, VGG-16", ALL: 0.659, "data": _DATA, "from_memory": True},
)


@dataclass(frozen=True)
class DetectionOptions:
    """What a person may choose of this kind alone."""

    regions: RegionOptions = RegionOptions()  # noqa: RUF009 (frozen)
    frozen_convolutions: int = 1


def evaluate_detection(url: str, options: VocOptions, own: DetectionOptions) -> Report:
    """Measures and writes the report into the run.

    Raises:
        UsageError: no such run or data; damaged data; a network without a map of positions.
        RunError: the training diverges.
    """
    recipe = options.apply(RECIPE)
    with open_voc_subject(url, options, "Main", lambda voc: (voc.year("2007"), "trainval", "test")) as subject:
        data = DetectionData(
            train=subject.examples(subject.train, WholeImage(mirror=True)),
            train_objects=_objects(subject.train),
            test=subject.examples(subject.test, WholeImage(mirror=False)),
            test_objects=_objects(subject.test),
            normalization=subject.normalization,
        )

        def measure(backbone: Backbone, mode: str, seed: int, say: Say) -> Mapping[str, Any]:
            found = measure_detection(
                backbone,
                data,
                recipe,
                mode,
                subject.numerics,
                seed,
                options=own.regions,
                frozen_convolutions=own.frozen_convolutions,
                progress=say,
            )
            by_rule = {
                "eleven_points": [score.eleven_points for score in found],
                "area": [score.area for score in found],
            }
            return {
                "map": float(np.mean(by_rule["eleven_points"])),  # type: ignore[arg-type]  # no class is empty
                "map_area": float(np.mean(by_rule["area"])),  # type: ignore[arg-type]
                "classes": dict(zip(CLASSES, by_rule["eleven_points"], strict=True)),
                "classes_area": dict(zip(CLASSES, by_rule["area"], strict=True)),
            }

        protocol = {
            UNTRAINED: untrained.DESCRIPTION,
            "name": "Faster R-CNN, trained further",
            "recipe": recipe.describe(),
            "trained": _trained(own.frozen_convolutions),
            "network": region_parts(subject.run.backbone).description,
            "regions": asdict(own.regions),
            "objects": "difficult ones take no part in training; in scoring they are ignored",
            "map": "overlaps of 0.5 and more, the development kit's rules; eleven points (VOC 2007), area (2010)",
        }
        report = subject.report(KIND, subject.rows(measure), protocol=protocol, published=PUBLISHED)
        write(subject.run.directory, report)
    return report


def render_detection(report: Report) -> str:
    """For the terminal."""
    protocol = report["protocol"]
    return "\n".join(
        [
            *heading(report),
            *score_table(report, "detection", {"map": "11-point", "map_area": "area"}),
            "",
            *class_table(report, "class", "11-point AP"),
            "",
            *notes(report, f"network: {protocol['network']}", f"mAP: {protocol['map']}"),
        ]
    )


def _objects(images: Images) -> Sequence[VocObjects]:
    """Of each image. Raises UsageError where an annotation is damaged or a class has no object."""
    objects = [read_objects(image, *shape) for image, shape in zip(images.images, images.shapes, strict=True)]
    present = {index for found in objects for index in found.classes[~found.difficult].tolist()}
    for index, name in enumerate(CLASSES):
        if index not in present:
            files = " and ".join(str(part.file) for part in images.split.sets)
            raise UsageError(
                f"{files}: no annotation of these {len(objects)} images has an object {name} that is not difficult, so "
                "there is nothing to learn or to find of this class; take a list with all classes"
            )
    return objects


def _trained(frozen_convolutions: int) -> dict[str, str]:
    statistics = "batch normalisation by its running statistics"
    frozen = f"all but the first {frozen_convolutions} convolution(s)" if frozen_convolutions else "the whole network"
    return {
        FC68: f"fully connected layers, proposals and predictions, the network's convolutions frozen; {statistics}",
        ALL: f"{frozen}; {statistics}",
    }
