"""Multi-label classification: the loss and the scores by hand and as scikit-learn has them; what is learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.augment import Normalization, to_float
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.transforms import View
from dcdist.data.voc import ABSENT, CLASSES, DIFFICULT, PRESENT, Voc
from dcdist.distributed.seeding import derive_seed
from dcdist.errors import RunError
from dcdist.evaluation.fine_tuning import ALL, FC68, Recipe
from dcdist.evaluation.untrained import learn_statistics
from dcdist.evaluation.voc_average_precision import IGNORED, RIGHT, WRONG
from dcdist.evaluation.voc_classification import (
    ClassificationData,
    MultiLabelNetwork,
    RandomCrop,
    classification_scores,
    masked_loss,
    measure_classification,
)
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics
from tests.voc_devkit import make_voc

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
CPU = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)


def test_labels_have_the_values_of_outcomes() -> None:
    assert (PRESENT, DIFFICULT, ABSENT) == (RIGHT, IGNORED, WRONG)


def test_the_loss_by_hand() -> None:
    """It is log 2 for each logit of 0 that counts; what is difficult does not, whatever was said."""
    labels = torch.tensor([[1, -1, 0], [-1, 0, 0]], dtype=torch.int8)
    logits = torch.tensor([[0.0, 0.0, 50.0], [0.0, -50.0, 50.0]], requires_grad=True)
    loss = masked_loss(logits, labels)
    assert loss.item() == pytest.approx(3 * np.log(2) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [[-0.25, 0.25, 0.0], [0.25, 0.0, 0.0]]


def test_scores_are_scikit_learns_without_difficult_images() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice([PRESENT, ABSENT, ABSENT, DIFFICULT], size=(200, len(CLASSES))).astype(np.int8)
    scores = (generator.normal(size=labels.shape) + (labels == PRESENT)).round(1)  # with ties
    found = classification_scores(labels, scores)
    for column, precision in enumerate(found.average_precisions):
        counted = labels[:, column] != DIFFICULT
        theirs = average_precision_score(labels[counted, column] == PRESENT, scores[counted, column])
        assert precision == pytest.approx(theirs, abs=1e-6)
    assert found.mean == pytest.approx(np.mean(found.average_precisions), abs=1e-12)


def test_scores_by_hand() -> None:
    """Ranked: present, absent, (difficult), present: precision 1 and 2/3 at the recalls 1/2 and 1."""
    labels = np.array([[1], [-1], [0], [1]], np.int8)
    found = classification_scores(labels, np.array([[0.9], [0.8], [0.7], [0.6]]))
    assert found.average_precisions == [pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-9)]
    assert found.eleven_points == [pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-9)]


def test_the_classifier_follows_the_networks_last_relu() -> None:
    backbone = build_backbone(ModelSection(name="alexnet"), 63, seed=0).eval()
    network = MultiLabelNetwork(backbone, seed=0).eval()
    images = torch.randn(3, 3, 63, 63, generator=torch.Generator().manual_seed(1))
    expected = backbone(images).clamp(min=0) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(images), expected)
    assert torch.equal(network.classifier.bias, torch.full((20,), 0.1))
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ClassificationData:
    """Images whose class is their colour."""
    devkit: Path = make_voc(tmp_path_factory.mktemp("voc"))
    voc = Voc({"2007": devkit / "VOC2007"})
    train, test = (voc.split(name, "Main", "2007") for name in ("trainval", "test"))
    view = View(16, "random_resized", scale=(0.5, 1.0), horizontal_flip=True, normalization=NORMALIZATION)
    make = RandomCrop(view)
    return ClassificationData(
        SeededExamples(train.images(), make), train.labels(), SeededExamples(test.images(), make), test.labels(), view
    )


@pytest.fixture(scope="module")
def backbone(data: ClassificationData) -> Backbone:
    """Untrained, but for the running statistics of its batch normalisation."""
    network = build_backbone(ModelSection(name="small_convnet"), 16, seed=0)
    pixels = torch.stack([crop for _, crop in data.train.load((index, index) for index in range(len(data.train)))])
    learn_statistics(network, [data.view.normalization(to_float(pixels))], network)
    return network


RECIPE = Recipe(80, 20, 0.01, 1e-6, factor=0.5, step=1, steps_of=3)


def test_colours_are_learnt_by_training_everything(data: ClassificationData, backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = measure_classification(backbone, data, RECIPE, ALL, CPU, seed=0, num_crops=3)
    assert found.mean > 0.8, "a ranking at random has 0.18 on 20 images with one of each class"
    assert found == measure_classification(backbone, data, RECIPE, ALL, CPU, seed=0, num_crops=3)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_seeds_and_crops_matter(data: ClassificationData, backbone: Backbone) -> None:
    short = replace(RECIPE, iterations=5)
    found = [
        measure_classification(backbone, data, short, FC68, CPU, seed, num_crops=crops)
        for seed, crops in ((0, 1), (1, 1), (0, 4))
    ]
    assert len({scores.mean for scores in found}) == 3


def test_logits_of_crops_are_summed(data: ClassificationData, backbone: Backbone) -> None:
    """Without any training the scores are sums over the crops that the seeds name."""
    nothing = replace(RECIPE, iterations=1, learning_rate=0.0)
    found = measure_classification(backbone, data, nothing, FC68, CPU, seed=7, num_crops=4)
    network = MultiLabelNetwork(backbone, seed=7).eval()
    scores = np.zeros((20, 20))
    for index, image in enumerate(data.test.images):
        for crop in range(4):
            pixels = RandomCrop(data.view)(image, derive_seed(7, "test", index, crop))
            seen = data.view.normalization(to_float(pixels[None]))
            scores[index] += network(seen).detach().numpy()[0]
    assert found == classification_scores(data.test_labels, scores)


def test_divergence_is_an_error(data: ClassificationData, backbone: Backbone) -> None:
    absurd = replace(RECIPE, iterations=40, learning_rate=1e30, clip_norm=1e30)
    with pytest.raises(RunError, match=r"lower --learning-rate"):
        measure_classification(backbone, data, absurd, ALL, CPU, seed=0, num_crops=1)
