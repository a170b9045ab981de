"""Detection of PASCAL VOC's objects by Faster R-CNN on a backbone that is trained further.

Shapes: N images, H x W pixels, n objects of an image, d detections, C = 20 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from dcdist.data.augment import Normalization, to_float
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.voc import CLASSES, VocImage
from dcdist.data.voc_objects import VocObjects
from dcdist.distributed.seeding import derive_seed, numpy_generator
from dcdist.errors import RunError
from dcdist.evaluation.detection_scores import Boxes, DetectionScore, detection_score
from dcdist.evaluation.fine_tuning import Recipe, fine_tune, set_trained, training_batches
from dcdist.evaluation.region_network import RegionOptions, region_network
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics

# Fast R-CNN's: 2 images a step, 30,000 steps at 0.001 and 10,000 at 0.0001 (Girshick, ICCV 2015, section 2.3).
RECIPE = Recipe(40_000, 2, 0.001, 5e-4, factor=0.1, step=3, steps_of=4)

Example = tuple[torch.Tensor, bool]  # uint8 [H, W, 3], and whether it is mirrored


@dataclass(frozen=True)
class WholeImage:
    """An image as it is, or mirrored, for SeededExamples."""

    mirror: bool  # half of the images

    def __call__(self, image: VocImage, seed: int) -> Example:
        mirrored = self.mirror and bool(numpy_generator(seed).random() < 0.5)
        pixels = torch.from_numpy(image.pixels())
        return (pixels.flip(1) if mirrored else pixels), mirrored


@dataclass(frozen=True)
class DetectionData:
    """Images and objects that are trained on, and those that are scored."""

    train: SeededExamples
    train_objects: Sequence[VocObjects]
    test: SeededExamples
    test_objects: Sequence[VocObjects]
    normalization: Normalization


@dataclass(frozen=True)
class Detections:
    """Of one image."""

    boxes: np.ndarray[tuple[int, int], np.dtype[np.float64]]  # [d, 4] as in VocObjects
    scores: np.ndarray[tuple[int], np.dtype[np.float64]]  # [d]
    classes: np.ndarray[tuple[int], np.dtype[np.int64]]  # [d], indices of CLASSES


def measure_detection(
    backbone: Backbone,
    data: DetectionData,
    recipe: Recipe,
    mode: str,
    numerics: Numerics,
    seed: int,
    *,
    options: RegionOptions,
    frozen_convolutions: int = 1,
    progress: Callable[[str], None] = lambda _line: None,
) -> list[DetectionScore]:
    """Trains a copy of the backbone within Faster R-CNN, and scores each of the C classes.

    Objects that are marked difficult are left out of training, as Fast R-CNN leaves them out.

    Args:
        backbone: stays as it is.
        data: images and objects.
        recipe: of the training.
        mode: FC68 (the convolutions are frozen) or ALL.
        numerics: device, precision and memory layout.
        seed: of new layers, the order, mirroring, the sampling of regions and dropout.
        options: of the detector.
        frozen_convolutions: of ALL, so many first convolutions stay as they are.
        progress: takes lines about the training.

    Raises:
        UsageError: the backbone has no map of positions.
        RunError: the loss or a score is not finite.
    """
    own = deepcopy(backbone)
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, "new layers"))
        network = region_network(own, len(CLASSES), data.normalization, numerics, options)
    numerics.place(network)
    set_trained(network, own, mode, frozen_convolutions)

    def loss_of(batch: list[tuple[int, Example]]) -> torch.Tensor:
        images, targets = [], []
        for index, (pixels, mirrored) in batch:
            images.append(_as_image(pixels, numerics))
            targets.append(training_target(data.train_objects[index], pixels.shape[1], mirrored, numerics.device))
        losses: dict[str, torch.Tensor] = network(images, targets)
        return torch.stack(list(losses.values())).sum()

    fine_tune(loss_of, network.parameters(), training_batches(data.train, recipe, seed), recipe, seed, progress)
    return scores_by_class(_predict(network, data.test, numerics), data.test_objects)


def training_target(objects: VocObjects, width: int, mirrored: bool, device: torch.device) -> dict[str, torch.Tensor]:
    """The objects that are not difficult as torchvision wants them: corners at pixels' edges, from 0; labels from 1."""
    wanted = ~objects.difficult
    corners = torch.from_numpy(objects.boxes[wanted]).float()
    left, top, right, bottom = (corners - torch.tensor([1.0, 1.0, 0.0, 0.0])).unbind(1)
    if mirrored:
        left, right = width - right, width - left
    return {
        "boxes": torch.stack([left, top, right, bottom], dim=1).to(device),
        "labels": torch.from_numpy(objects.classes[wanted] + 1).to(device),
    }


def scores_by_class(detections: Sequence[Detections], objects: Sequence[VocObjects]) -> list[DetectionScore]:
    """Of each of the C classes, over images."""
    image_of_detection = _image_ids([len(found.scores) for found in detections])
    image_of_object = _image_ids([len(true.classes) for true in objects])
    corners = np.concatenate([found.boxes for found in detections])
    scores = np.concatenate([found.scores for found in detections])
    called = np.concatenate([found.classes for found in detections])
    true_corners = np.concatenate([true.boxes for true in objects])
    difficult = np.concatenate([true.difficult for true in objects])
    true = np.concatenate([true.classes for true in objects])
    return [
        detection_score(
            Boxes(image_of_detection[called == index], corners[called == index]),
            scores[called == index],
            Boxes(image_of_object[true == index], true_corners[true == index]),
            difficult[true == index],
        )
        for index in range(len(CLASSES))
    ]


def _image_ids(counts: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.repeat(np.arange(len(counts)), counts)


def _as_image(pixels: torch.Tensor, numerics: Numerics) -> torch.Tensor:
    return to_float(pixels[None].to(numerics.device, non_blocking=True))[0]


@torch.no_grad()
def _predict(network: torch.nn.Module, test: SeededExamples, numerics: Numerics) -> list[Detections]:
    network.eval()
    found = []
    for _, (pixels, _) in test.load((index, 0) for index in range(len(test))):
        (prediction,) = network([_as_image(pixels, numerics)])
        boxes, scores, labels = (prediction[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise RunError("the trained network's detections are not finite: take a lower --learning-rate")
        # From edges of pixels to pixels that count from 1, the last one included.
        corners = boxes.astype(np.float64) + np.array([1, 1, 0, 0])
        found.append(Detections(corners, scores.astype(np.float64), labels - 1))
    return found
