"""Jigsaw: what the network is shown and asked, the losses by hand, what is refused, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcdist.data.loader import Batch
from dcdist.data.permutations import permutation_set
from dcdist.data.tiles import NUM_TILES, Tiles
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.training_step import TrainingStep
from dcdist.methods.base import EpochLength
from dcdist.methods.jigsaw import Jigsaw, Outputs, require_maps
from dcdist.models.alexnet import alexnet
from dcdist.models.backbone import Backbone, averaged, convolution
from dcdist.models.numerics import Numerics
from dcdist.models.puzzle_head import PuzzleHead, pooled
from dcdist.models.sobel import Sobel
from tests.distributed.processes import run_processes

NUM_PERMUTATIONS = 6
SIZE = 6
USABLE = np.arange(10) * 3


def network() -> Backbone:
    return averaged(nn.Identity(), nn.Sequential(convolution(3, 8, stride=2)), 8)


def method(
    rotation: bool = False,
    num_distractors: int = 0,
    predict_distractors: bool = False,
    pool: int = 1,
    hidden: int | None = 16,
    dropout: float = 0.0,
    **arguments: Any,
) -> Jigsaw:
    defaults: dict[str, Any] = {
        "permutations": permutation_set(NUM_PERMUTATIONS, 1),
        "view": View(size=24, crop="full", tiles=Tiles(SIZE)),
        "seed": 1,
        "length": EpochLength(batch_size=4, steps_per_epoch=None),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = arguments.pop("backbone", None) or network()
        head = PuzzleHead(
            num_channels=backbone.num_channels,
            num_tiles=NUM_TILES,
            pool=pool,
            tile_features=8,
            hidden=hidden,
            dropout=dropout,
            num_classes=NUM_PERMUTATIONS * (4 if rotation else 1),
            predicts_distractors=predict_distractors,
        )
        return Jigsaw(backbone, head, rotation=rotation, num_distractors=num_distractors, **{**defaults, **arguments})


def microbatch(tiles: torch.Tensor, classes: torch.Tensor, seed: int = 0) -> dict[str, Batch]:
    ids = torch.arange(len(tiles)) + 50
    return {"puzzles": Batch((tiles,), ids, classes, torch.ones_like(ids, dtype=torch.bool), seed, ())}


def numbered_tiles(count: int) -> torch.Tensor:
    """Tiles [B, T, 3, s, s]: the first colour is the number of the image, the second the place, the third a ramp."""
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, NUM_TILES, SIZE, SIZE)
    places = torch.arange(NUM_TILES).view(1, -1, 1, 1).expand(count, -1, SIZE, SIZE)
    ramp = torch.arange(SIZE * SIZE).view(1, 1, SIZE, SIZE).expand(count, NUM_TILES, -1, -1)
    return torch.stack([images, places, ramp], dim=2).float()


def shown(jigsaw: Jigsaw, classes: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, Outputs]:
    """What the backbone sees of numbered tiles [B, T, 3, s, s], and what the method says of it."""
    seen = []
    hook = jigsaw.backbone.stem.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    outputs = jigsaw(microbatch(numbered_tiles(len(classes)), classes, seed))
    hook.remove()
    (tiles,) = seen
    assert tiles.is_contiguous(memory_format=torch.channels_last)
    return tiles.unflatten(0, (-1, NUM_TILES)), outputs


# --- the puzzle


def test_unshuffling_by_the_target_gives_back_the_image() -> None:
    jigsaw, classes = method(), torch.tensor([0, 3, 5, 2, 1, 4])
    puzzles, outputs = shown(jigsaw, classes)
    order = jigsaw.permutations[classes]
    assert torch.equal(puzzles[:, :, 1, 0, 0].long(), order)
    restored = puzzles[torch.arange(6).unsqueeze(1), order.argsort(1)]
    assert torch.equal(restored, numbered_tiles(6))
    assert torch.equal(outputs.classes, classes)
    assert outputs.logits.shape == (6, NUM_PERMUTATIONS)
    assert (outputs.distractor_logits.shape, bool(outputs.distractors.any())) == ((6, 0), False)


def test_rotation_turns_all_tiles_in_place_and_is_part_of_the_class() -> None:
    jigsaw = method(rotation=True)
    classes = torch.tensor([2, 2 + NUM_PERMUTATIONS, 2 + 2 * NUM_PERMUTATIONS, 5 + 3 * NUM_PERMUTATIONS])
    puzzles, outputs = shown(jigsaw, classes)
    for index, (turns, permutation) in enumerate([(0, 2), (1, 2), (2, 2), (3, 5)]):
        assert torch.equal(puzzles[index, :, 1, 0, 0].long(), jigsaw.permutations[permutation])
        ramp = torch.rot90(numbered_tiles(1)[0, 0, 2], turns)
        assert torch.equal(puzzles[index, :, 2], ramp.expand(NUM_TILES, -1, -1))
    assert outputs.logits.shape == (4, 4 * NUM_PERMUTATIONS)
    assert jigsaw.chance_losses() == {"permutations": math.log(24)}


def test_distractors_are_tiles_of_one_other_image_where_the_outputs_say() -> None:
    jigsaw = method(num_distractors=3, rotation=True, predict_distractors=True)
    classes = torch.arange(24)
    puzzles, outputs = shown(jigsaw, classes, seed=7)
    images, places = puzzles[:, :, 0, 0, 0].long(), puzzles[:, :, 1, 0, 0].long()
    own = images == torch.arange(24).unsqueeze(1)
    assert torch.equal(outputs.distractors, ~own)
    assert set(outputs.distractors.sum(1).tolist()) == {0, 1, 2, 3}
    order = jigsaw.permutations[classes % NUM_PERMUTATIONS]
    assert torch.equal(places[own], order[own]), "the others stay where the permutation puts them"
    for index in range(24):
        assert len(images[index][~own[index]].unique()) <= 1
        replaced = places[index][~own[index]]
        assert len(replaced.unique()) == len(replaced)
        ramp = torch.rot90(numbered_tiles(1)[0, 0, 2], index // NUM_PERMUTATIONS)
        assert torch.equal(puzzles[index, :, 2], ramp.expand(NUM_TILES, -1, -1)), "a distractor is turned, too"
    assert torch.equal(shown(jigsaw, classes, seed=7)[0], puzzles)
    assert not torch.equal(shown(jigsaw, classes, seed=8)[0], puzzles)


# --- losses and figures


def test_losses_and_figures_by_hand() -> None:
    jigsaw = method(rotation=True, num_distractors=1, predict_distractors=True)
    logits = torch.zeros(2, 24)
    logits[0, 7] = math.log(3)  # turn 1, permutation 1: 3 / 26 of the mass; everything else has 1 / 26
    logits[1, 20] = math.log(3)  # turn 3, permutation 2
    distractor_logits = torch.full((2, NUM_TILES), -math.log(3))  # 1/4 each
    distractor_logits[0, 4] = math.log(3)  # 3/4
    distractors = torch.zeros(2, NUM_TILES, dtype=torch.bool)
    distractors[0, 4] = distractors[1, 8] = True
    outputs = Outputs(logits, torch.tensor([7, 2]), distractor_logits, distractors)
    losses = {name: value.item() for name, value in jigsaw.losses(outputs).items()}
    assert losses["permutations"] == pytest.approx((math.log(26 / 3) + math.log(26)) / 2)
    # 17 places are said rightly with 3/4, one distractor is overlooked with 1/4
    assert losses["distractors"] == pytest.approx((17 * math.log(4 / 3) + math.log(4)) / 18)
    figures = {name: value.item() for name, value in jigsaw.figures(outputs).items()}
    assert figures == pytest.approx({"accuracy": 1.0, "rotation_accuracy": 0.5, "distractor_accuracy": 17 / 18})


def test_without_switches_there_is_one_loss_and_one_figure() -> None:
    jigsaw = method()
    logits = torch.zeros(4, NUM_PERMUTATIONS)
    logits[:, 2] = 1.0
    outputs = Outputs(logits, torch.tensor([2, 2, 2, 0]), torch.zeros(4, 0), torch.zeros(4, 9, dtype=torch.bool))
    assert set(jigsaw.losses(outputs)) == {"permutations"}
    assert {name: value.item() for name, value in jigsaw.figures(outputs).items()} == {"accuracy": 0.75}
    assert jigsaw.chance_losses() == {"permutations": math.log(NUM_PERMUTATIONS)}


def test_gradients_reach_the_body_and_the_head_and_no_more_is_trained() -> None:
    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    body = nn.Sequential(convolution(3, 8, stride=2))
    jigsaw = method(
        backbone=Backbone(nn.Identity(), body, top, 8, 5, features_before_relu=False),
        rotation=True,
        num_distractors=2,
        predict_distractors=True,
    )
    tiles = torch.randn(8, NUM_TILES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    sum(jigsaw.losses(jigsaw(microbatch(tiles, torch.arange(8)))).values()).backward()  # type: ignore[union-attr]
    (group,) = jigsaw.parameter_groups()
    names = {id(parameter): name for name, parameter in jigsaw.named_parameters()}
    trained = {names[id(parameter)] for parameter in group["params"]}
    assert trained == {name for name in names.values() if not name.startswith("backbone.top")}
    without = {name for name, parameter in jigsaw.named_parameters() if parameter.grad is None}
    assert without == {"backbone.top.2.weight", "backbone.top.2.bias"}
    assert all(parameter.grad.abs().sum() > 0 for parameter in jigsaw.backbone.body.parameters())


# --- the head


def test_windows_of_the_pooling_cover_the_map() -> None:
    maps = torch.arange(25.0).view(1, 1, 5, 5)
    assert pooled(maps, 1).item() == 12
    assert pooled(maps, 2)[0, 0].tolist() == [[6, 8], [16, 18]]  # windows of 3, from 0 and 2
    even = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(even, 3), nn.functional.adaptive_avg_pool2d(even, 3))


def test_tiles_share_a_layer_and_the_hidden_layer_may_be_left_out() -> None:
    head = method(hidden=None, pool=3).head
    assert head.tile[0].weight.shape == (8, 8 * 9)
    assert head.order.weight.shape == (NUM_PERMUTATIONS, NUM_TILES * 8)
    maps = torch.rand(2 * NUM_TILES, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    head.eval()
    tiles = head.tile(maps.flatten(1))  # [B * T, F]
    expected = head.order(torch.stack([tiles[:NUM_TILES].flatten(), tiles[NUM_TILES:].flatten()]))
    torch.testing.assert_close(head(maps)[0], expected)


# --- the plan


def test_the_plan_draws_all_classes_and_is_a_function_of_seed_and_epoch() -> None:
    length = EpochLength(batch_size=4, steps_per_epoch=600)
    plan = method(rotation=True, length=length).plan_epoch(3, USABLE, None)
    (stream,) = plan.streams.values()
    assert (plan.num_steps, stream.targets.shape, stream.targets.dtype) == (600, (2400,), np.int64)
    shares = np.bincount(stream.targets, minlength=24) / 2400
    assert len(shares) == 24
    assert abs(shares - 1 / 24).max() < 0.02
    assert np.bincount(stream.sample_ids, minlength=28)[USABLE].tolist() == [240] * 10
    (again,) = method(rotation=True, length=length).plan_epoch(3, USABLE, None).streams.values()
    assert np.array_equal(again.targets, stream.targets)
    assert np.array_equal(again.sample_ids, stream.sample_ids)
    for seed, epoch in ((1, 4), (2, 3)):
        (other,) = method(rotation=True, length=length, seed=seed).plan_epoch(epoch, USABLE, None).streams.values()
        assert (other.targets != stream.targets).mean() > 0.9
        assert (other.sample_ids != stream.sample_ids).mean() > 0.8


def test_an_epoch_passes_once_over_the_images_in_whole_steps() -> None:
    plan = method().plan_epoch(0, USABLE, None)
    (stream,) = plan.streams.values()
    assert (plan.num_steps, len(stream.sample_ids)) == (3, 12)
    assert set(stream.sample_ids) == set(USABLE)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_distractors": 9}, r"num_distractors is 9.*set jigsaw.num_distractors to 0\.\.8"),
        ({"predict_distractors": True}, "no distractors to be predicted: set jigsaw.num_distractors to 1 or more"),
        ({"view": View(24, tiles=Tiles(9))}, "a tile of 9 pixels does not fit a cell of 8"),
        ({"pool": 4}, "3 x 3 positions, which cannot be averaged to 4 x 4: set jigsaw.pool to at most 3"),
        (
            {"backbone": averaged(nn.Identity(), nn.Sequential(nn.Conv2d(3, 8, 7)), 8)},
            r"tiles of 6 pixels are too small for the network.*enlarge jigsaw\.tile_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**arguments)


@pytest.mark.parametrize(("size", "fits"), [(64, True), (62, False)])
def test_published_networks_behind_sobel_are_tried_out_without_a_trace(size: int, fits: bool) -> None:
    with torch.random.fork_rng():
        backbone = alexnet(Sobel(), 2, 224).eval()
    view, state = View(255, tiles=Tiles(size)), torch.get_rng_state()
    if fits:
        require_maps(backbone, view, pool=1)
    else:
        with pytest.raises(ValueError, match=r"tiles of 62 pixels are too small .*\(256x0x0\)"):
            require_maps(backbone, view, pool=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in backbone.modules())
    assert int(backbone.body.conv1[1].num_batches_tracked) == 0


def test_a_microbatch_of_one_image_has_no_distractors() -> None:
    with pytest.raises(ValueError, match=r"train\.microbatch_size to at least 2"):
        method(num_distractors=1)(microbatch(numbered_tiles(1), torch.tensor([0])))


# --- training


def test_it_learns_the_order_of_gradients_and_which_tile_is_anothers() -> None:
    """Red runs to the right, green downwards, which tells a tile's place; blue is an image's own, which tells whose."""
    torch.manual_seed(0)
    jigsaw = method(num_distractors=2, predict_distractors=True, pool=3, hidden=128)
    optimizer = torch.optim.AdamW(jigsaw.parameters(), 1e-2)
    cut = Tiles(SIZE, normalize=False)
    generator = torch.Generator().manual_seed(0)
    red, green = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 24), indexing="xy")
    accuracies, losses = [], []
    for step in range(300):
        blue = (torch.rand(32, 1, 1, 1, generator=generator) < 0.5).float().expand(-1, -1, 24, 24)
        pictures = torch.cat([torch.stack([red, green]).expand(32, -1, -1, -1), blue], dim=1)
        classes = torch.randint(NUM_PERMUTATIONS, (32,), generator=generator)
        outputs = jigsaw(microbatch(cut(pictures, generator), classes, seed=step))
        parts = jigsaw.losses(outputs)
        optimizer.zero_grad()
        sum(parts.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        accuracies.append(jigsaw.figures(outputs)["accuracy"].item())
        losses.append(parts["distractors"].item())
    assert accuracies[0] < 0.5
    assert np.mean(accuracies[-30:]) > 0.9
    entropy = -(1 / 9 * math.log(1 / 9) + 8 / 9 * math.log(8 / 9))  # the loss of who knows their share alone
    assert np.mean(losses[-30:]) < 0.9 * entropy  # half of them have the same blue


NUM_MICROBATCHES = 4


def train(collectives: Collectives) -> dict[str, Any]:
    """Two steps of SGD with everything switched on; what is random in a microbatch depends on its seed alone."""
    jigsaw = method(rotation=True, num_distractors=3, predict_distractors=True, dropout=0.5)
    optimizer = Optimizer(
        jigsaw.parameter_groups(),
        {parameter: name for name, parameter in jigsaw.named_parameters()},
        "sgd",
        0.9,
        1e-4,
        Schedule(0.05, "constant", 0, 2),
    )
    numerics = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)
    step = TrainingStep(jigsaw, optimizer, numerics, collectives, NUM_MICROBATCHES)
    totals = {}
    for number in range(2):
        microbatches, seeds = [], []
        for own in step.own_microbatches():
            generator = torch.Generator().manual_seed(100 * number + own)
            tiles = torch.randn(6, NUM_TILES, 3, SIZE, SIZE, generator=generator)
            classes = torch.randint(24, (6,), generator=generator)
            microbatches.append(microbatch(tiles, classes, seed=own))
            seeds.append(100 * number + own)
        sums, _ = step(microbatches, seeds, number)
        for name, value in {**sums.losses, **sums.figures}.items():
            totals[name] = float(collectives.all_reduce_sum(value.double().reshape(1))) / NUM_MICROBATCHES
    return {"totals": totals, "state": {name: value.numpy() for name, value in jigsaw.state_dict().items()}}


def test_two_processes_train_as_one() -> None:
    alone = train(Collectives())
    assert set(alone["totals"]) == {
        "permutations",
        "distractors",
        "accuracy",
        "rotation_accuracy",
        "distractor_accuracy",
    }
    for together in run_processes(train, 2):
        assert together["totals"] == pytest.approx(alone["totals"], rel=1e-5)
        for name, value in alone["state"].items():
            np.testing.assert_allclose(together["state"][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
