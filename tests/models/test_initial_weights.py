"""Initial weights: all of them or an error that names what does not match."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dcdist.errors import RunError, UsageError
from dcdist.models.alexnet import alexnet
from dcdist.models.backbone import Backbone
from dcdist.models.heads import ClusterHead
from dcdist.models.initial_weights import load_initial_weights
from dcdist.models.resnet import resnet18, resnet34, resnet50
from dcdist.models.small import small_convnet, small_resnet
from dcdist.models.sobel import Sobel
from dcdist.models.torchvision_backbone import torchvision_backbone
from dcdist.models.vgg import vgg16
from dcdist.run_directory import RunDirectory
from tests.engine.checkpoint_states import Holder, load, new_checkpointer
from tests.models.torchvision_reference import reference, without_last_layer

State = dict[str, torch.Tensor]
OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|conv))1\.")  # as in the file of DenseNet that torchvision publishes


def seeded(build: Callable[..., nn.Module], *arguments: Any, seed: int = 0, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*arguments, **options)


def network(seed: int = 0) -> Backbone:
    return seeded(small_convnet, nn.Identity(), 3, 32, width=0.25, seed=seed)


def state_of(module: nn.Module) -> State:
    return {name: value.clone() for name, value in module.state_dict().items()}


def check_equal(backbone: Backbone, state: State) -> None:
    found = backbone.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def saved(folder: Path, state: State, name: str = "weights.safetensors") -> str:
    path = str(folder / name)
    if name.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def method_state(seed: int) -> State:
    method = nn.ModuleDict({"backbone": network(seed), "head": ClusterHead(32, 5, relu_first=False)})
    return state_of(method)


def write_run(url: str, states: list[dict[str, Any]], name: str = "method") -> None:
    """An attempt that commits each of these."""
    checkpointer = new_checkpointer(url)
    load(checkpointer, {})
    for step, state in enumerate(states, start=1):
        checkpointer.save(step, "train", {name: Holder(state), "progress": Holder({"step": step})}, {"epoch": step})


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth", "weights.pth.tar"])
def test_a_backbones_own_state(tmp_path: Path, name: str) -> None:
    state = state_of(network(1))
    path = saved(tmp_path, state, name)
    backbone = network()
    assert load_initial_weights(backbone, path) == f"initial weights: {len(state)} tensors of {path}"
    check_equal(backbone, state)


def test_a_relative_path_and_nested_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"module.{name}": value for name, value in state_of(network(1)).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    monkeypatch.chdir(tmp_path)
    backbone = network()
    load_initial_weights(backbone, "checkpoint.pth")
    check_equal(backbone, state_of(network(1)))


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
def test_the_newest_checkpoint_of_a_run(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if place == "s3":
        request.getfixturevalue("s3_server")
    run = {"local": str(tmp_path / "run"), "memory": f"memory://{tmp_path.name}", "s3": "s3://bucket/run"}[place]
    states = [method_state(seed) for seed in (1, 2, 3)]
    write_run(run, states)
    backbone = network()
    summary = load_initial_weights(backbone, run)
    check_equal(backbone, state_of(network(3)))
    number = len(backbone.state_dict())
    folder = f"{run}/checkpoints/step-00000003-train.0001"
    assert summary == f"initial weights: {number} tensors of {folder}; left out: head (3)"
    # As a file of weights, behind the same URL.
    storage = RunDirectory(run).storage
    storage.write_bytes(
        "other.safetensors", storage.read_bytes("checkpoints/step-00000002-train.0001/method.safetensors")
    )
    load_initial_weights(backbone, f"{run}/other.safetensors")
    check_equal(backbone, state_of(network(2)))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    write_run(str(run), [method_state(seed) for seed in (1, 2)])
    older, newer = sorted(run.glob("checkpoints/*/method.safetensors"))
    content = bytearray(newer.read_bytes())
    content[-1] ^= 1
    newer.write_bytes(content)
    backbone = network()
    with caplog.at_level(logging.WARNING):
        assert "step-00000001-train.0001" in load_initial_weights(backbone, str(run))
    check_equal(backbone, state_of(network(1)))
    assert "step-00000002-train.0001" in caplog.text
    assert "method.safetensors has changed" in caplog.text
    older.unlink()
    with pytest.raises(RunError, match=r"none is whole .*step-00000002-train.0001.*step-00000001-train.0001"):
        load_initial_weights(backbone, str(run))


def test_what_is_not_committed_or_not_on_the_line_is_not_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(str(run), [method_state(seed) for seed in (1, 2)])
    (run / "checkpoints/step-00000002-train.0001/COMMIT.json").unlink()
    backbone = network()
    assert "step-00000001-train.0001" in load_initial_weights(backbone, str(run))
    check_equal(backbone, state_of(network(1)))


def test_a_backbone_within_parts_of_a_method(tmp_path: Path) -> None:
    own, other = state_of(network(1)), state_of(network(2))
    backbone = network()
    shared = {f"{part}.backbone.{name}": value.clone() for part in ("one", "two") for name, value in own.items()}
    summary = load_initial_weights(backbone, saved(tmp_path, shared | {"one.head.weight": torch.zeros(1)}))
    check_equal(backbone, own)
    assert summary.endswith(f"left out: one (1), two ({len(own)})")
    differing = shared | {f"two.backbone.{name}": value for name, value in other.items()}
    with pytest.raises(
        UsageError, match=re.escape("several backbones that differ: one.backbone., two.backbone.; save")
    ):
        load_initial_weights(backbone, saved(tmp_path, differing))
    # The method's own goes before that of a part, such as a teacher.
    teacher = {f"backbone.{name}": value for name, value in own.items()}
    teacher |= {f"teacher.backbone.{name}": value for name, value in other.items()}
    backbone = network()
    assert f"left out: teacher ({len(own)})" in load_initial_weights(backbone, saved(tmp_path, teacher))
    check_equal(backbone, own)


def check_takes_over(backbone: Backbone, whole: nn.Module, folder: Path, name: str = "weights.safetensors") -> str:
    """Loads what torchvision's network saves; then both give the same. Returns the end of the summary."""
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        whole(images)  # so that running statistics are not those of every new network
        state = {OLD_NAMES.sub(r"\1.1.", key): value for key, value in state_of(whole).items()}
        summary = load_initial_weights(backbone, saved(folder, state, name))
        expected = without_last_layer(whole.eval())(images)
        torch.testing.assert_close(backbone.eval()(images), expected, rtol=1e-4, atol=1e-5)
    return summary.partition("; ")[2]


@pytest.mark.parametrize(("name", "build"), [("resnet18", resnet18), ("resnet34", resnet34), ("resnet50", resnet50)])
def test_torchvision_resnets(tmp_path: Path, name: str, build: Any) -> None:
    backbone = seeded(build, nn.Identity(), 3, 32)
    assert check_takes_over(backbone, reference(name, 32, seed=1), tmp_path, f"{name}.pth") == "left out: fc (2)"


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("resnet18", "fc (2)"),
        ("mobilenet_v3_small", "classifier (2)"),
        ("shufflenet_v2_x0_5", "fc (2)"),
        ("densenet121", "classifier (2)"),
        ("googlenet", "fc (2)"),
        ("squeezenet1_0", "classifier (2)"),
        ("regnet_y_400mf", "fc (2)"),
        ("swin_t", "head (2)"),
        ("vit_b_32", "heads (2)"),
        pytest.param("convnext_tiny", "classifier (2)", marks=pytest.mark.soak),
        pytest.param("vgg11", "classifier (2)", marks=pytest.mark.soak),
    ],
)
def test_other_networks_of_torchvision(tmp_path: Path, name: str, left_out: str) -> None:
    backbone = seeded(torchvision_backbone, nn.Identity(), 3, 32, name)
    assert check_takes_over(backbone, reference(name, 32, seed=1), tmp_path) == f"left out: {left_out}"


def test_auxiliary_classifiers_are_left_out(tmp_path: Path) -> None:
    backbone = seeded(torchvision_backbone, nn.Identity(), 3, 64, "googlenet")
    path = saved(tmp_path, state_of(reference("googlenet", 64, seed=1, aux_logits=True)))
    assert load_initial_weights(backbone, path).endswith("; left out: aux1 (10), aux2 (10), fc (2)")


def test_numbered_layers_of_vgg(tmp_path: Path) -> None:
    from torchvision.models import vgg16_bn

    state = state_of(seeded(vgg16_bn, weights=None, seed=1))
    with torch.device("meta"):
        backbone = vgg16(nn.Identity(), 3, 224)
    backbone = backbone.to_empty(device="cpu")
    path = saved(tmp_path, {f"module.{name}": value for name, value in state.items()})
    assert load_initial_weights(backbone, path).endswith("left out: classifier (2)")
    expected = [value for name, value in state.items() if not name.startswith("classifier.6")]
    assert all(map(torch.equal, backbone.state_dict().values(), expected))


def test_numbered_layers_of_deepcluster(tmp_path: Path) -> None:
    # A file as published: https://github.com/facebookresearch/deepcluster, models/alexnet.py, of torch 0.3.
    backbone, other = (seeded(alexnet, Sobel(), 2, 64, seed=seed) for seed in (0, 1))
    layers = {f"conv{number}": first for number, first in zip(range(1, 6), (0, 4, 8, 11, 14), strict=True)}
    state: State = {"sobel.0.weight": torch.ones(1, 3, 1, 1), "top_layer.bias": torch.ones(10000)}
    for name, value in other.state_dict().items():
        place, layer, *rest = name.split(".")
        if name.endswith("num_batches_tracked"):
            continue
        if place == "body":
            state[f"features.module.{layers[layer] + int(rest[0])}.{rest[1]}"] = value
        else:
            state[f"classifier.{ {'fc6': 1, 'fc7': 4}[layer] }.{rest[0]}"] = value
    torch.save({"epoch": 1, "arch": "alexnet", "state_dict": state}, tmp_path / "checkpoint.pth.tar")
    summary = load_initial_weights(backbone, str(tmp_path / "checkpoint.pth.tar"))
    assert summary.endswith("left out: sobel (1), top_layer (1)")
    check_equal(backbone, state_of(other))


def check_refused(backbone: Backbone, path: str, *patterns: str) -> None:
    before = state_of(backbone)
    with pytest.raises(UsageError) as refusal:
        load_initial_weights(backbone, path)
    assert path in str(refusal.value)
    for pattern in patterns:
        assert pattern in str(refusal.value)
    check_equal(backbone, before)


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    state = state_of(network(1))
    value = state.pop("body.conv3.0.weight")
    state |= {"body.conv9.0.weight": value, "momentum": torch.zeros(1)}
    check_refused(
        network(),
        saved(tmp_path, state),
        "missing in the file: body.conv3.0.weight; unknown to the network: body.conv9.0.weight, momentum. Build",
    )


def test_a_file_of_heads_alone_is_refused(tmp_path: Path) -> None:
    check_refused(
        network(),
        saved(tmp_path, {"fc.weight": torch.zeros(2, 2), "projection_head.0.bias": torch.zeros(2)}),
        "missing in the file: body.conv1.0.weight, body.conv1.1.weight",
        " and 14 more",
    )


def test_other_shapes_name_both_and_the_remedy(tmp_path: Path) -> None:
    edges, colours = (
        seeded(small_convnet, stem, channels, 32, width=0.25) for stem, channels in ((Sobel(), 2), (nn.Identity(), 3))
    )
    check_refused(
        colours,
        saved(tmp_path, state_of(edges)),
        "of other shapes: body.conv1.0.weight [8, 2, 5, 5] for [8, 3, 5, 5]. ",
        "sees edges: set model.sobel=true",
    )
    check_refused(edges, saved(tmp_path, state_of(colours)), "sees colours: set model.sobel=false")
    wide = seeded(small_convnet, nn.Identity(), 3, 32, width=0.5)
    check_refused(wide, saved(tmp_path, state_of(colours)), "[8, 3, 5, 5] for [16, 3, 5, 5]", "by the keys of `model`")
    small = seeded(resnet18, nn.Identity(), 3, 32, small_images=True)
    check_refused(
        small, saved(tmp_path, state_of(reference("resnet18", 32, seed=1))), "[64, 3, 7, 7] for [64, 3, 3, 3]"
    )


def test_another_architecture(tmp_path: Path) -> None:
    residual = seeded(small_resnet, nn.Identity(), 3, 32)
    check_refused(
        residual,
        saved(tmp_path, state_of(reference("mobilenet_v3_small", 32, seed=1))),
        "missing in",
        "unknown to",
        " more",
    )


def test_what_is_neither_a_file_nor_a_run(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    check_refused(network(), str(tmp_path / "folder"), "neither the folder of a run", "*.safetensors")
    check_refused(network(), str(tmp_path / "none.pth"), "cannot be read", "the folder of a run")
    write_run(str(tmp_path / "run"), [{"weight": torch.zeros(1)}], name="other")
    check_refused(network(), str(tmp_path / "run"), "has no method.safetensors, only other.json")


class Harmful:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.pt", [torch.zeros(1)], "its content is [tensor"),
        ("empty.pt", {}, "its content is {}"),
        ("mixed.pt", {"weight": torch.zeros(1), "epoch": 3}, "its entries ['epoch'] are no tensors"),
        ("harmful.pt", {"weight": Harmful()}, "Weights only load failed"),
    ],
)
def test_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / name)
    check_refused(network(), str(tmp_path / name), "does not hold named tensors: ", reason, "with safetensors")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_files_that_were_cut_off(tmp_path: Path, name: str) -> None:
    path = Path(saved(tmp_path, state_of(network()), name))
    for length in (0, 100, path.stat().st_size - 10):
        path.write_bytes(path.read_bytes()[:length])
        check_refused(network(), str(path), "does not hold named tensors")
