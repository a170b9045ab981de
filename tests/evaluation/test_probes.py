"""Classifiers on layers: poolings, schedules and moments by hand, one process as two, all layers as each alone."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torchvision.transforms.functional import five_crop

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.loader import BatchLoader
from dcdist.data.source import ImageSource, open_source
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError
from dcdist.evaluate.layers import CORNERS
from dcdist.evaluation.probe_inputs import FromImages, PooledMaps, cached
from dcdist.evaluation.probe_recipes import RECIPES, ProbeRecipe
from dcdist.evaluation.probe_training import ProbeScore, build_probes, score_probes, train_probes
from dcdist.evaluation.probes import AVERAGE_POOLS, LARGEST_DIMENSIONS, Keep, Probe, ProbeName, pooling
from dcdist.models.backbone import OUTPUT
from dcdist.models.numerics import Numerics
from tests.distributed.processes import run_processes

CPU = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)
QUICK = replace(RECIPES["deepcluster"], num_epochs=2, batch_size=50, learning_rate=0.01, weight_decay=1e-2)
NAMES = ("a", "b")


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        ("conv1", (1, 96, 55, 55), (96, 10, 10)),
        ("conv2", (1, 256, 27, 27), (256, 6, 6)),
        ("conv3", (1, 384, 13, 13), (384, 5, 5)),
        ("conv4", (1, 384, 13, 13), (384, 5, 5)),
        ("conv5", (1, 256, 13, 13), (256, 6, 6)),
    ],
)
def test_alexnets_layers_are_pooled_to_the_published_sizes(
    layer: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """9,600 or 9,216 features of each (Zhang et al. 2017), also by the overlapping pools of Goyal et al."""
    for pools in ("deepcluster", "goyal"):
        pool = pooling("alexnet", layer, shape, pools)
        assert isinstance(pool, nn.AvgPool2d)
        assert tuple(pool(torch.zeros(shape)).shape[1:]) == expected


def test_vgg16s_layers_are_pooled_to_the_published_sizes() -> None:
    """8,192 to 9,216 of each."""
    sides = [224] * 2 + [112] * 2 + [56] * 3 + [28] * 3 + [14] * 3
    channels = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    for number, (side, width) in enumerate(zip(sides, channels, strict=True), start=1):
        pool = pooling("vgg16", f"conv{number}", (1, width, side, side), "deepcluster")
        assert isinstance(pool, nn.AvgPool2d)
        assert pool(torch.zeros(1, width, side, side)).numel() in (8192, 9216)
    assert set(AVERAGE_POOLS["deepcluster"]["vgg16"]) == {f"conv{number}" for number in range(1, 14)}


@pytest.mark.parametrize(
    ("channels", "side", "left"), [(64, 16, 12), (256, 7, 6), (2048, 7, 2), (10000, 7, 1), (8, 5, 5)]
)
def test_other_maps_are_pooled_to_the_finest_grid_of_9600_features(channels: int, side: int, left: int) -> None:
    pool = pooling("resnet18", "layer1", (1, channels, side, side), "deepcluster")
    assert tuple(pool(torch.zeros(1, channels, side, side)).shape) == (1, channels, left, left)
    assert pooling("alexnet", "conv1", (1, 96, 15, 15), "deepcluster")(torch.zeros(1, 96, 15, 15)).shape[-1] == 10


def test_learning_rates_by_hand() -> None:
    recipe = ProbeRecipe(0.5, 0.1, 4, "inverse_sqrt")
    assert [recipe.learning_rate_at(step, 10) for step in (0, 60, 160)] == pytest.approx([0.5, 0.25, 0.5 / 3])
    recipe = ProbeRecipe(0.5, 0.1, 4, "steps", drops=(1, 3))
    assert [recipe.learning_rate_at(step, 10) for step in (9, 10, 29, 30)] == pytest.approx([0.5, 0.05, 0.05, 0.005])
    recipe = ProbeRecipe(0.5, 0.1, 4, "cosine")
    assert [recipe.learning_rate_at(step, 10) for step in (0, 10, 20, 40)] == pytest.approx(
        [0.5, 0.25 * (1 + math.sqrt(0.5)), 0.25, 0.0]
    )


def test_a_normalising_probe_is_batch_normalisation_before_a_linear_layer() -> None:
    probe = Probe((3, 2, 2), 4, "linear", normalize=True, generator=torch.Generator().manual_seed(0))
    reference = nn.BatchNorm2d(3, affine=False)
    generator = torch.Generator().manual_seed(1)
    (linear,) = probe.linears
    assert isinstance(linear, nn.Linear)
    for _ in range(3):
        pooled = 5 + 2 * torch.randn(6, 3, 2, 2, generator=generator)
        expected = linear(reference(pooled).flatten(1))
        found = probe(pooled, probe.observe(pooled, Collectives()))
        assert found.detach() == pytest.approx(expected.detach(), abs=1e-5)
    reference.eval()
    assert probe(pooled).detach() == pytest.approx(linear(reference(pooled).flatten(1)).detach(), abs=1e-5)
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.3)


def test_the_perceptron_drops_the_same_units_on_any_number_of_ranks() -> None:
    probe = Probe((4,), 3, "mlp", normalize=False, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    whole = probe(rows, keep=Keep(slice(0, 8), 8, 1, 2))
    parts = [probe(rows[part], keep=Keep(part, 8, 1, 2)) for part in (slice(0, 3), slice(3, 8))]
    assert whole.detach() == pytest.approx(torch.cat(parts).detach(), abs=1e-6)
    assert not torch.allclose(whole, probe(rows))
    mask = Keep(slice(0, 8), 8, 1, 2)(0, rows.device)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert float(mask.mean()) == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split-digits")
    data = load_digits()
    for index in range(240):
        folder = root / ("train" if index < 160 else "test") / str(data.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 255 / 16).round().astype("uint8")).save(folder / f"{index:04d}.png")
    (root / "train" / "3" / "damaged.png").write_bytes(b"no image")
    (root / "test" / "3" / "damaged.png").write_bytes(b"no image")
    return root


def maps_of(*layers: str) -> PooledMaps:
    networks = {
        name: build_backbone(ModelSection(name="small_convnet", width=0.5, sobel=name == "b"), 16, seed)
        for seed, name in enumerate(NAMES)
    }
    return PooledMaps(networks, layers, "small_convnet", 16, "deepcluster", CPU)


VIEW = View(size=16, resize=18, crop="random", horizontal_flip=True)


def images_of(root: Path, maps: PooledMaps, collectives: Collectives, view: View = VIEW) -> FromImages:
    source = open_source(root, "train")
    assert source.labels is not None
    return FromImages(maps, source, np.flatnonzero(source.labels >= 0), view, BatchLoader([source], 0), collectives)


def trained(
    collectives: Collectives, root: Path, layers: tuple[str, ...], recipe: ProbeRecipe, kind: str = "linear"
) -> dict[str, Any]:
    """Weights by network and layer, and the losses."""
    maps = maps_of(*layers)
    names = [ProbeName(network, layer, kind) for network, layer in maps.shapes]  # type: ignore[arg-type]
    probes = build_probes(maps, names, 10, recipe, 3)
    losses: list[float] = []
    train_probes(
        probes, images_of(root, maps, collectives), recipe, collectives, 3, lambda _s, _n, loss: losses.append(loss)
    )
    weights = {
        f"{name.network} {name.layer}": probe.linears[0].weight.detach().numpy() for name, probe in probes.items()
    }
    return {"losses": losses, **weights}


@pytest.mark.parametrize("normalize", [False, True])
def test_two_processes_train_what_one_trains(digits: Path, normalize: bool) -> None:
    """161 images in batches of 50 or less, an undecodable one among them: the last batch has 11 images on one rank."""
    recipe = replace(QUICK, normalize=normalize)
    alone = run_processes(trained, 1, digits, ("conv1", OUTPUT), recipe)[0]
    both = run_processes(trained, 2, digits, ("conv1", OUTPUT), recipe)
    assert len(alone["losses"]) == 8
    assert min(alone["losses"][1:]) < alone["losses"][0]
    for rank in both:
        for name, values in alone.items():
            assert rank[name] == pytest.approx(values, rel=1e-4, abs=1e-6)


def test_layers_that_are_trained_together_are_as_each_alone(digits: Path) -> None:
    together = trained(Collectives(), digits, ("conv1", "conv2"), QUICK)
    for layer in ("conv1", "conv2"):
        alone = trained(Collectives(), digits, (layer,), QUICK)
        for network in NAMES:
            assert np.array_equal(together[f"{network} {layer}"], alone[f"{network} {layer}"])


def test_images_that_do_not_decode_are_not_in_the_moments(digits: Path, tmp_path: Path) -> None:
    """Their pictures are black: the moments are those of a folder without them."""
    maps, means = maps_of("conv2"), []
    shutil.copytree(digits, tmp_path / "whole")
    (tmp_path / "whole" / "train" / "3" / "damaged.png").unlink()
    recipe = replace(RECIPES["goyal-imagenet"], num_epochs=1, batch_size=300)
    for root in (digits, tmp_path / "whole"):
        probes = build_probes(maps, [ProbeName("a", "conv2", "linear")], 10, recipe, 3)
        view = replace(VIEW, crop="center", horizontal_flip=False)
        train_probes(probes, images_of(root, maps, Collectives(), view), recipe, Collectives(), 3)
        (probe,) = probes.values()
        means.append(probe.mean)
    assert torch.allclose(*means, atol=1e-6)


def test_layers_that_give_no_map_are_refused() -> None:
    """Swin has its channels last, ViT a row of tokens."""
    for name, shape in (("swin_t", r"\[1, 2, 2, 768\]"), ("vit_b_32", r"\[1, 768\]")):
        network = build_backbone(ModelSection(name=f"torchvision/{name}"), 64, seed=0)
        layer = network.layer_names()[-1]
        with pytest.raises(UsageError, match=rf"layer '{layer}' of this network gives {shape} .* --layers output"):
            PooledMaps({"a": network}, [layer], name, 64, "deepcluster", CPU)


def test_gradients_and_steps_are_torchs(digits: Path) -> None:
    """One step of SGD with momentum and weight decay on the mean cross-entropy, from pixels that were pooled here."""
    maps = maps_of("conv1")
    view = View(size=16, resize=16)
    recipe = replace(QUICK, num_epochs=1, batch_size=200, learning_rate=0.1, weight_decay=0.3)
    names = [ProbeName("a", "conv1", "linear")]
    probes = build_probes(maps, names, 10, recipe, 3)
    (linear,) = probes[names[0]].linears
    assert isinstance(linear, nn.Linear)
    before = linear.weight.detach().clone()
    inputs = images_of(digits, maps, Collectives(), view)
    (batch,) = inputs.epoch(3, 0, 200)
    decoded = batch.labels >= 0
    assert int(decoded.sum()) == 160
    train_probes(probes, inputs, recipe, Collectives(), 3)
    weight = before.clone().requires_grad_()
    scores = batch.pooled["a", "conv1"][decoded].flatten(1) @ weight.T
    (functional.cross_entropy(scores, batch.labels[decoded], reduction="sum") / 161).backward()
    assert weight.grad is not None
    assert linear.weight.detach() == pytest.approx(before - 0.1 * (weight.grad + 0.3 * before), abs=1e-6)


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_cached_maps_are_those_of_the_images(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision; read again without a pass, made again where weights differ or the description is missing."""
    maps = maps_of("conv2", OUTPUT)
    view = View(size=16, resize=16)
    source = open_source(digits, "train")
    assert source.labels is not None
    ids = np.flatnonzero(source.labels >= 0)
    loader = BatchLoader([source], 0)

    def open_cache() -> Any:
        return cached(tmp_path, maps, source, ids, view, loader, Collectives(), 32)

    inputs = open_cache()
    (batch,) = inputs.epoch(3, 0, 200)
    (seen,) = images_of(digits, maps, Collectives(), view).epoch(3, 0, 200)
    assert torch.equal(batch.labels, seen.labels)
    known = batch.labels >= 0
    assert int((~known).sum()) == 1
    for layer, pooled in seen.pooled.items():
        assert batch.pooled[layer][known].float() == pytest.approx(pooled[known], rel=2e-3, abs=1e-3)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 8
    open_cache()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    described = next(tmp_path.glob("*.json"))
    inode = described.with_suffix(".npy").stat().st_ino
    described.unlink()
    open_cache()
    assert len(list(tmp_path.iterdir())) == 8
    assert described.with_suffix(".npy").stat().st_ino != inode, "who has the old file open keeps what is in it"
    described.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_cache()
    assert len(list(tmp_path.iterdir())) == 7, "nothing but the missing description: half a file would stay for ever"
    open_cache()
    with torch.no_grad():
        next(maps._networks["a"].parameters()).add_(1.0)
    open_cache()
    assert len(list(tmp_path.iterdir())) == 12  # both layers of the network that changed


def score(collectives: Collectives, root: Path, mirrored: bool) -> dict[str, float | None]:
    maps = maps_of("conv2")
    names = [ProbeName("a", "conv2", "linear")]
    recipe = replace(QUICK, num_epochs=10, normalize=True)
    probes = build_probes(maps, names, 10, recipe, 3)
    train_probes(probes, images_of(root, maps, Collectives()), recipe, Collectives(), 3)
    source: ImageSource = open_source(root, "test")
    view = View(size=16, resize=20)
    views = [view, replace(view, position=(0.0, 1.0))] if mirrored else [view]
    found = score_probes(probes, maps, source, views, mirrored, BatchLoader([source], 0), 32, collectives)[names[0]]
    assert isinstance(found, ProbeScore)
    top1, top5 = _by_hand(probes[names[0]], maps, root, views, mirrored)
    return {"top1": found.top1, "top5": found.top5, "top1 by hand": top1, "top5 by hand": top5}


def _by_hand(probe: Probe, maps: PooledMaps, root: Path, views: list[View], mirrored: bool) -> tuple[float, float]:
    """Image by image, crop by crop."""
    right = []
    source = open_source(root, "test")
    assert source.labels is not None
    for index, label in enumerate(source.labels):
        try:
            image = np.asarray(Image.open(root / "test" / source.keys[index].removeprefix("test/")).convert("RGB"))
        except OSError:
            continue
        crops = [view.apply(image, view.draw(np.random.default_rng(0), 1), 0) for view in views]
        pixels = [crop.permute(2, 0, 1)[None] / 255 for crop in crops]
        seen = [*pixels, *(crop.flip(3) for crop in pixels)] if mirrored else pixels
        with torch.no_grad():
            scores = sum(probe(maps(crop)["a", "conv2"]).softmax(1) for crop in seen)
        assert isinstance(scores, torch.Tensor)
        rank = int((scores > scores[0, label]).sum())
        right.append((rank == 0, rank < 5))
    assert len(right) == 80
    top1, top5 = np.mean(right, axis=0).tolist()
    return top1, top5


@pytest.mark.parametrize("mirrored", [False, True])
def test_scores_by_one_crop_and_by_several(digits: Path, mirrored: bool) -> None:
    alone = score(Collectives(), digits, mirrored)
    assert (alone["top1"], alone["top5"]) == (alone["top1 by hand"], alone["top5 by hand"])
    assert 0.3 < alone["top1"] < alone["top5"] <= 1  # type: ignore[operator]
    for rank in run_processes(score, 2, digits, mirrored):
        assert rank == alone


def test_ten_crops_are_torchvisions() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    views = [View(size=32, resize=40, position=position) for position in CORNERS]
    own = [view.apply(image, view.draw(np.random.default_rng(0), 1), 0).permute(2, 0, 1) for view in views]
    *corners, center = five_crop(torch.from_numpy(image).permute(2, 0, 1), [32, 32])
    assert all(torch.equal(one, other) for one, other in zip(own, [center, *corners], strict=True))


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4"]), ("vgg16", None)]
)
def test_layers_of_other_networks(name: str, layers: list[str] | None) -> None:
    """Blocks of a ResNet, the thirteen convolutions of VGG-16: no more than 9,600 features, each of its own layer."""
    network = build_backbone(ModelSection(name=name), 64, seed=0)
    names = network.layer_names()
    assert names == (layers or [f"conv{number}" for number in range(1, 14)])
    maps = PooledMaps({"a": network}, [*names, OUTPUT], name, 64, "deepcluster", CPU)
    assert all(math.prod(shape) <= LARGEST_DIMENSIONS for shape in maps.shapes.values())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.layers(images, [names[1], OUTPUT])
    pooled = maps(images)
    assert torch.equal(pooled["a", OUTPUT], expected[OUTPUT])
    side = maps.shapes["a", names[1]][1]
    assert torch.allclose(pooled["a", names[1]], functional.adaptive_avg_pool2d(expected[names[1]], side), atol=1e-5)
