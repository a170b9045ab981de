"""Training further: the schedule, the order, what is frozen, the step by hand, the same result from the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.voc import VocImage
from dcdist.errors import RunError, UsageError
from dcdist.evaluation.fine_tuning import (
    ALL,
    FC68,
    Recipe,
    fine_tune,
    set_trained,
    training_batches,
    training_keys,
)
from dcdist.evaluation.voc_classification import PRESETS, MultiLabelNetwork


def quiet(_line: str) -> None:
    pass


def test_the_rate_falls_as_published_and_in_proportion() -> None:
    published = PRESETS["deepcluster"].recipes[FC68]
    assert [published.rate(i) for i in (0, 4_999, 5_000, 79_999)] == [0.003, 0.003, 0.0015, 0.003 * 0.5**15]
    shorter = Recipe(160, 16, 0.003, 0.0, factor=0.5, step=5_000, steps_of=80_000)
    assert [shorter.rate(i) for i in (0, 9, 10, 159)] == [0.003, 0.003, 0.0015, 0.003 * 0.5**15]
    assert [Recipe(100, 1, 1.0, 0.0, power=0.9).rate(i) for i in (0, 50)] == pytest.approx([1.0, 0.5**0.9])
    assert [Recipe(100, 1, 1.0, 0.0).rate(i) for i in (0, 99)] == [1.0, 1.0]
    assert published.describe()["schedule"] == "times 0.5 after each 0.0625 of the iterations"


def test_every_image_comes_once_before_any_comes_again() -> None:
    keys = list(training_keys(7, 20, seed=3))
    indices = [index for index, _ in keys]
    assert [sorted(indices[:7]), sorted(indices[7:14])] == [list(range(7))] * 2
    assert indices[:7] != indices[7:14], "drawn anew"
    assert len(set(indices[14:])) == 6
    assert len({seed for _, seed in keys}) == 20
    assert list(training_keys(7, 9, seed=3)) == keys[:9], "a longer training begins alike"
    assert list(training_keys(7, 20, seed=4)) != keys


def test_a_step_by_hand() -> None:
    """Of w^2 / 2 from 1: 0.9 after the first step; then the velocity is 0.9 * 1 + 0.9."""
    weight = nn.Parameter(torch.tensor(1.0))
    recipe = Recipe(2, 1, 0.1, 0.0)
    fine_tune(lambda _batch: weight**2 / 2, [weight], [None, None], recipe, 0, quiet)
    assert weight.item() == pytest.approx(0.9 - 0.1 * 1.8)


def test_steep_gradients_are_clipped_and_weights_decay() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    fine_tune(lambda _batch: 1000 * weight, [weight], [None], Recipe(1, 1, 0.01, 0.5), 0, quiet)
    assert weight.item() == pytest.approx(1 - 0.01 * (10 + 0.5), rel=1e-5)


def test_dropout_is_decided_by_the_seed_and_the_global_generator_is_left_alone() -> None:
    def trained(seed: int) -> float:
        weight = nn.Parameter(torch.ones(50))
        loss = lambda _batch: torch.dropout(weight, 0.5, train=True).sum()  # noqa: E731
        fine_tune(loss, [weight], [None] * 3, Recipe(3, 1, 0.01, 0.0), seed, quiet)
        return float((weight.detach() * torch.arange(50)).sum())

    before = torch.get_rng_state()
    assert trained(0) == trained(0) != trained(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_ends_with_the_remedy() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    losses: Iterator[float] = iter([1.0, float("inf")])
    with pytest.raises(RunError, match=r"iteration 2 of 5 is inf: .* lower --learning-rate than 0\.1"):
        fine_tune(lambda _batch: weight * next(losses), [weight], [None] * 5, Recipe(5, 1, 0.1, 0.0), 0, quiet)


def test_lines_say_how_far_it_is() -> None:
    lines: list[str] = []
    weight = nn.Parameter(torch.tensor(1.0))
    fine_tune(lambda _batch: weight * 0 + 2, [weight], [None] * 3, Recipe(3, 1, 0.1, 0.0), 0, lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("iteration 3 of 3, loss 2.0000, ")


def trainable(network: nn.Module) -> set[str]:
    return {name.partition(".")[2] for name, value in network.named_parameters() if value.requires_grad}


def alexnet() -> MultiLabelNetwork:
    return MultiLabelNetwork(build_backbone(ModelSection(name="alexnet"), 63, seed=0), seed=0)


TOP = {"top.fc6.weight", "top.fc6.bias", "top.fc7.weight", "top.fc7.bias", "weight", "bias"}


def test_frozen_convolutions() -> None:
    network = alexnet()
    set_trained(network, network.backbone, FC68)
    assert trainable(network) == TOP
    set_trained(network, network.backbone, FC68, batchnorm=True)
    scales = {f"body.conv{layer}.1.{kind}" for layer in range(1, 6) for kind in ("weight", "bias")}
    assert trainable(network) == TOP | scales


def test_all_but_the_first_convolutions() -> None:
    network = alexnet()
    names = {name.partition(".")[2] for name, _ in network.named_parameters()}
    set_trained(network, network.backbone, ALL)
    assert trainable(network) == names
    set_trained(network, network.backbone, ALL, frozen_convolutions=2)
    assert names - trainable(network) == {n for n in names if n.startswith(("body.conv1.", "body.conv2."))}


@pytest.mark.parametrize("mode", [FC68, ALL])
def test_training_leaves_running_statistics_and_frozen_weights_as_they_are(mode: str) -> None:
    network = alexnet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    set_trained(network, network.backbone, mode)
    images = torch.randn(4, 3, 63, 63, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(2, 4, 0.01, 0.0)
    fine_tune(lambda batch: network(batch).square().mean(), network.parameters(), [images] * 2, recipe, 0, quiet)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert any(name.startswith("backbone.top.fc6") for name in changed)
    assert any(name.startswith("backbone.body") for name in changed) == (mode == ALL)


def make_number(image: VocImage, seed: int) -> tuple[str, int]:
    if image.name == "damaged":
        raise UsageError("damaged.jpg does not decode")
    return image.name, seed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_examples_come_in_order_from_any_number_of_processes(num_workers: int) -> None:
    images = [VocImage(Path("VOC2007"), name) for name in ("a", "b", "c", "damaged")]
    examples = SeededExamples(images, make_number, num_workers)
    keys = list(training_keys(3, 8, seed=1))
    try:
        assert list(examples.load(keys)) == [(index, (images[index].name, seed)) for index, seed in keys]
        with pytest.raises(UsageError, match=r"^damaged\.jpg does not decode$"):
            list(examples.load([(0, 0), (3, 0)]))
    finally:
        examples.close()


def test_batches_are_as_large_as_the_recipe_says() -> None:
    examples = SeededExamples([VocImage(Path("VOC2007"), name) for name in "abc"], make_number)
    batches = list(training_batches(examples, Recipe(4, 2, 0.1, 0.0), seed=1))
    keys = list(training_keys(3, 8, seed=1))
    assert [[(index, seed) for index, (_, seed) in batch] for batch in batches] == [
        keys[i : i + 2] for i in (0, 2, 4, 6)
    ]
