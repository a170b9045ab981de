"""Detection: coordinates by hand, and a detector that learns one picture by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.augment import Normalization, to_float
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.voc import CLASSES, VocImage
from dcdist.data.voc_objects import VocObjects, read_objects
from dcdist.evaluation.detection_scores import DetectionScore
from dcdist.evaluation.fine_tuning import ALL, FC68, Recipe
from dcdist.evaluation.region_network import RegionOptions
from dcdist.evaluation.untrained import learn_statistics
from dcdist.evaluation.voc_detection import (
    DetectionData,
    Detections,
    WholeImage,
    measure_detection,
    scores_by_class,
    training_target,
)
from dcdist.models.numerics import Numerics
from tests.voc_devkit import BOX, HEIGHT, WIDTH, make_voc

CPU = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)
DOG, CAT = CLASSES.index("dog"), CLASSES.index("cat")


def objects(*rows: tuple[int, tuple[float, ...], bool]) -> VocObjects:
    return VocObjects(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[2] for row in rows], bool),
    )


def test_targets_are_edges_of_pixels_and_leave_difficult_objects_out() -> None:
    both = objects((DOG, (1, 2, 10, 20), False), (CAT, (5, 5, 6, 6), True), (CAT, (50, 3, 50, 3), False))
    target = training_target(both, 50, mirrored=False, device=torch.device("cpu"))
    assert target["boxes"].tolist() == [[0, 1, 10, 20], [49, 2, 50, 3]]
    assert target["labels"].tolist() == [DOG + 1, CAT + 1]
    mirrored = training_target(both, 50, mirrored=True, device=torch.device("cpu"))
    assert mirrored["boxes"].tolist() == [[40, 1, 50, 20], [0, 2, 1, 3]]
    nothing = training_target(objects((CAT, (5, 5, 6, 6), True)), 50, mirrored=True, device=torch.device("cpu"))
    assert (nothing["boxes"].shape, nothing["labels"].shape) == ((0, 4), (0,))


def test_a_mirrored_image_agrees_with_its_boxes(tmp_path: Path) -> None:
    """What is cut out by the box of the mirrored image is what the box cuts out of the image, mirrored."""
    image = VocImage(make_voc(tmp_path) / "VOC2007", "000001")
    found = read_objects(image, HEIGHT, WIDTH)
    cut = {}
    for seed in range(6):
        pixels, mirrored = WholeImage(mirror=True)(image, seed)
        left, top, right, bottom = (
            int(value) for value in training_target(found, WIDTH, mirrored, torch.device("cpu"))["boxes"][0]
        )
        cut[mirrored] = pixels[top:bottom, left:right]
    assert cut[False].shape == (BOX[3] - BOX[1] + 1, BOX[2] - BOX[0] + 1, 3)
    assert torch.equal(cut[True], cut[False].flip(1))
    assert WholeImage(mirror=False)(image, 1)[1] is False


def test_scores_are_of_each_class_over_the_images() -> None:
    truth = [objects((DOG, (1, 1, 10, 10), False)), objects((DOG, (1, 1, 10, 10), False), (CAT, (1, 1, 10, 10), False))]
    box = np.array([[1.0, 1, 10, 10]])
    found = [
        Detections(np.concatenate([box, box + 50]), np.array([0.9, 0.8]), np.array([DOG, CAT])),
        Detections(np.concatenate([box, box]), np.array([0.7, 0.6]), np.array([CAT, DOG])),
    ]
    scores = scores_by_class(found, truth)
    assert scores[DOG] == DetectionScore(1.0, 1.0, 2)
    assert scores[CAT] == DetectionScore(0.5, 0.5, 1)
    assert all(score == DetectionScore(None, None, 0) for i, score in enumerate(scores) if i not in (DOG, CAT))


@pytest.fixture(scope="module")
def one_image(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    """A picture of an aeroplane, to learn and to find."""
    image = VocImage(make_voc(tmp_path_factory.mktemp("voc")) / "VOC2007", "000001")
    known = [read_objects(image, HEIGHT, WIDTH)]
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    train, test = (SeededExamples([image], WholeImage(mirror)) for mirror in (True, False))
    return DetectionData(train, known, test, known, normalization)


def pixels_of(data: DetectionData) -> torch.Tensor:
    """[1, 3, H, W] as the network sees them."""
    ((_, (pixels, _)),) = data.test.load([(0, 0)])
    return data.normalization(to_float(pixels[None]))


OPTIONS = RegionOptions((64,), proposals_in_training=100, proposals_in_prediction=30, regions_an_image=32)


def test_one_picture_is_learnt_by_heart(one_image: DetectionData) -> None:
    backbone = build_backbone(ModelSection(name="small_convnet"), 32, seed=0)
    learn_statistics(backbone, [pixels_of(one_image)], backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    recipe = Recipe(60, 2, 0.02, 0.0, factor=0.1, step=3, steps_of=4)
    found = measure_detection(backbone, one_image, recipe, ALL, CPU, seed=0, options=OPTIONS, frozen_convolutions=0)
    assert found[0] == DetectionScore(1.0, 1.0, 1), "found first of all, with an overlap of a half and more"
    assert all(score.num_objects == 0 for score in found[1:])
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_a_step_on_each_kind_of_network(one_image: DetectionData, name: str) -> None:
    backbone = build_backbone(ModelSection(name=name, sobel=name == "alexnet"), 64, seed=0)
    for mode in (FC68, ALL):
        found = [
            measure_detection(backbone, one_image, Recipe(1, 1, 0.01, 0.0), mode, CPU, seed=0, options=OPTIONS)
            for _ in range(2)
        ]
        assert found[0] == found[1], "the same seed, the same scores"
        assert found[0][0].num_objects == 1
