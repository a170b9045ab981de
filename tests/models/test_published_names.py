"""Names of tensors elsewhere: those of the other libraries, and the way back by which weights are loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcdist.build.run import BACKBONES, build_backbone
from dcdist.config.schema import ModelSection
from dcdist.models.backbone import Backbone
from dcdist.models.initial_weights import load_initial_weights
from dcdist.models.published_names import published_names

NETWORKS = [
    *(ModelSection(name=name, sobel=True) for name in BACKBONES),
    ModelSection(name="resnet18"),
    ModelSection(name="resnet18", small_images=True),
    *(
        ModelSection(name=f"torchvision/{name}")
        for name in ("regnet_y_400mf", "vit_b_32", "densenet121", "googlenet", "swin_t", "convnext_tiny")
    ),
]


def built(model: ModelSection) -> Backbone:
    return build_backbone(model, 64, seed=0)


def published_state(model: ModelSection, backbone: Backbone) -> dict[str, torch.Tensor]:
    names = published_names(model.name, backbone)
    return {names[key]: tensor for key, tensor in backbone.state_dict().items()}


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: f"{model.name}{'-sobel' * model.sobel}")
def test_weights_come_back_under_published_names(model: ModelSection, tmp_path: Path) -> None:
    exported = built(model)
    fresh = copy.deepcopy(exported)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    save_file(published_state(model, exported), tmp_path / "weights.safetensors")
    load_initial_weights(fresh, str(tmp_path / "weights.safetensors"))
    state = fresh.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in exported.state_dict().items())


def test_alexnet_is_named_as_published_with_deepcluster() -> None:
    """https://github.com/facebookresearch/deepcluster, models/alexnet.py: the places of the layers with weights."""
    state = published_state(model := ModelSection(name="alexnet", sobel=True), built(model))
    layers = sorted({name.rpartition(".")[0] for name in state})
    convolutions, normalisations = (0, 4, 8, 11, 14), (1, 5, 9, 12, 15)
    expected = [f"features.{number}" for number in (*convolutions, *normalisations)]
    assert layers == sorted([*expected, "classifier.1", "classifier.4"])
    assert all(state[f"features.{number}.weight"].ndim == 4 for number in convolutions)
    assert state["features.0.weight"].shape == (96, 2, 11, 11)
    assert state["classifier.4.weight"].shape == (4096, 4096)


def test_resnet18_misses_nothing_but_its_classifier() -> None:
    from torchvision.models import resnet18

    state = published_state(model := ModelSection(name="resnet18"), built(model))
    result = resnet18().load_state_dict(state, strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    assert result.unexpected_keys == []


def test_small_networks_keep_their_names() -> None:
    backbone = built(model := ModelSection(name="small_resnet"))
    assert published_state(model, backbone).keys() == backbone.state_dict().keys()
