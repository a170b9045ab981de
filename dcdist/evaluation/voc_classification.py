"""Multi-label classification of PASCAL VOC by a network that is trained further.

The protocol is that of DeepCluster (Caron et al., ECCV 2018, section 4.2) and of Doersch et al. (ICCV 2015) before it.
Shapes: N images, B images of a batch, S pixels a side, C = 20 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional

from dcdist.data.augment import to_float
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.transforms import View
from dcdist.data.voc import CLASSES, DIFFICULT, PRESENT, VocImage
from dcdist.distributed.seeding import derive_seed, numpy_generator, torch_generator
from dcdist.errors import RunError
from dcdist.evaluation.fine_tuning import ALL, FC68, Recipe, fine_tune, set_trained, training_batches
from dcdist.evaluation.voc_average_precision import eleven_points, ranking
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics

_TEST_BATCH_SIZE = 50


@dataclass(frozen=True)
class Crops:
    """Random crops: share of the image's area, width over height."""

    scale: tuple[float, float]
    ratio: tuple[float, float]


@dataclass(frozen=True)
class Preset:
    """A published protocol: how each mode is trained, and the crops of training and test alike."""

    recipes: dict[str, Recipe]
    crops: Crops


_DEEPCLUSTER = Recipe(80_000, 16, 0.003, 1e-6, factor=0.5, step=5_000, steps_of=80_000)
_CAFFE = Recipe(150_000, 16, 0.001, 1e-6, factor=0.5, step=20_000, steps_of=150_000)
PRESETS = {
    "deepcluster": Preset({FC68: _DEEPCLUSTER, ALL: _DEEPCLUSTER}, Crops((0.1, 0.5), (1.0, 1.0))),
    "deepcluster-caffe": Preset({FC68: _CAFFE, ALL: _CAFFE}, Crops((0.1, 0.5), (1.0, 1.0))),
    "deepercluster": Preset(
        {
            FC68: Recipe(150_000, 16, 0.003, 1e-5, factor=0.5, step=20_000, steps_of=150_000),
            ALL: Recipe(150_000, 16, 0.003, 1e-4, factor=0.5, step=10_000, steps_of=150_000),
        },
        Crops((0.08, 1.0), (3 / 4, 4 / 3)),
    ),
}


@dataclass(frozen=True)
class RandomCrop:
    """An image -> uint8 [S, S, 3] of a random crop of it, for SeededExamples."""

    view: View

    def __call__(self, image: VocImage, seed: int) -> torch.Tensor:
        return self.view.apply(image.pixels(), self.view.draw(numpy_generator(seed), 1), 0)


@dataclass(frozen=True)
class ClassificationData:
    """Crops and labels of the images that are trained on, and of those that are scored."""

    train: SeededExamples
    train_labels: np.ndarray[Any, Any]  # int8 [N, C]
    test: SeededExamples
    test_labels: np.ndarray[Any, Any]  # int8 [N, C]
    view: View


class MultiLabelNetwork(nn.Module):
    """A backbone and a new linear classifier: images [B, 3, S, S] -> a logit for each class [B, C]."""

    def __init__(self, backbone: Backbone, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.relu = nn.ReLU() if backbone.features_before_relu else nn.Identity()
        self.classifier = nn.Linear(backbone.num_features, len(CLASSES))
        nn.init.normal_(self.classifier.weight, 0.0, 0.01, torch_generator(seed, "classifier"))
        nn.init.constant_(self.classifier.bias, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.relu(self.backbone(images)))
        return logits


@dataclass(frozen=True)
class ClassificationScores:
    """Average precisions of each class, and their means."""

    average_precisions: list[float]  # scikit-learn's: a step at each score
    eleven_points: list[float]  # VOC 2007's rule

    @property
    def mean(self) -> float:
        return float(np.mean(self.average_precisions))

    @property
    def mean_eleven_points(self) -> float:
        return float(np.mean(self.eleven_points))


def classification_scores(labels: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> ClassificationScores:
    """Average precision of each class over the images in which it is not difficult.

    Args:
        labels: int8 [N, C] of PRESENT, DIFFICULT and ABSENT; every class is present somewhere.
        scores: [N, C], the higher the surer that the class is present.
    """
    exact, by_eleven_points = [], []
    for wanted, given in zip(labels.T, scores.T, strict=True):
        counted = wanted != DIFFICULT
        exact.append(float(average_precision_score(wanted[counted] == PRESENT, given[counted])))
        # Labels have the values of outcomes: an image where it is present is right, where difficult ignored.
        points = eleven_points(wanted[ranking(given)], int((wanted == PRESENT).sum()))
        assert points is not None
        by_eleven_points.append(points)
    return ClassificationScores(exact, by_eleven_points)


def measure_classification(
    backbone: Backbone,
    data: ClassificationData,
    recipe: Recipe,
    mode: str,
    numerics: Numerics,
    seed: int,
    *,
    num_crops: int = 10,
    train_batchnorm: bool = False,
    progress: Callable[[str], None] = lambda _line: None,
) -> ClassificationScores:
    """Trains a copy of the backbone with a new classifier, and scores the sums of the logits of random crops.

    The loss is binary cross-entropy, without the classes that are difficult in an image, summed over classes and
    averaged over images, as Caffe's sigmoid cross-entropy is.

    Args:
        backbone: stays as it is.
        data: crops and labels.
        recipe: of the training.
        mode: FC68 (the convolutions are frozen) or ALL.
        numerics: device, precision and memory layout.
        seed: of the classifier, the order, the crops and dropout.
        num_crops: of each test image.
        train_batchnorm: in FC68, whether scales and shifts of batch normalisation are trained.
        progress: takes lines about the training.

    Raises:
        RunError: the loss or a score is not finite.
    """
    network = MultiLabelNetwork(deepcopy(backbone), seed)
    numerics.place(network)
    set_trained(network, network.backbone, mode, batchnorm=train_batchnorm)
    targets = torch.from_numpy(data.train_labels)

    def logits_of(crops: list[torch.Tensor]) -> torch.Tensor:
        pixels = torch.stack(crops).to(numerics.device, non_blocking=True)
        with numerics.autocast():
            logits: torch.Tensor = network(data.view.normalization(to_float(pixels)))
        return logits.float()

    def loss_of(batch: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
        labels = targets[[index for index, _ in batch]].to(numerics.device)
        return masked_loss(logits_of([crop for _, crop in batch]), labels)

    batches = training_batches(data.train, recipe, seed)
    fine_tune(loss_of, network.parameters(), batches, recipe, seed, progress)
    network.eval()
    scores = _sums_of_logits(logits_of, data.test, num_crops, seed)
    return classification_scores(data.test_labels, scores)


def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of logits and labels [B, C] without difficult ones: a sum over classes, a mean over B."""
    losses = functional.binary_cross_entropy_with_logits(logits, (labels == PRESENT).float(), reduction="none")
    return losses.masked_fill(labels == DIFFICULT, 0.0).sum() / len(logits)


@torch.no_grad()
def _sums_of_logits(
    logits_of: Callable[[list[torch.Tensor]], torch.Tensor], test: SeededExamples, num_crops: int, seed: int
) -> np.ndarray[Any, Any]:
    """[N, C]: over the random crops of each image."""
    keys = ((index, derive_seed(seed, "test", index, crop)) for index in range(len(test)) for crop in range(num_crops))
    loaded = test.load(keys)
    sums = np.zeros((len(test), len(CLASSES)))
    while batch := list(islice(loaded, _TEST_BATCH_SIZE)):
        logits = logits_of([crop for _, crop in batch]).cpu().numpy()
        np.add.at(sums, [index for index, _ in batch], logits)
    if not np.isfinite(sums).all():
        raise RunError("the trained network's scores are not finite: take a lower --learning-rate")
    return sums
