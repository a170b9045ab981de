"""The same features from torchvision's and timm's own networks, built as their counterparts say."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.models.backbone import Backbone
from dcdist.models.counterparts import LAST_LAYERS, OF_TIMM, timm_counterpart, torchvision_counterpart
from dcdist.models.published_names import published_names
from tests.models.layers import replaced
from tests.models.torchvision_reference import reference

NETWORKS: list[tuple[dict[str, Any], int]] = [
    ({"name": "resnet18"}, 64),
    ({"name": "resnet18", "sobel": True}, 64),
    ({"name": "resnet18", "small_images": True}, 32),
    ({"name": "resnet18", "small_images": True, "sobel": True}, 32),
    ({"name": "resnet50"}, 32),
    ({"name": "vgg16", "sobel": True}, 75),
    ({"name": "torchvision/densenet121"}, 64),
    ({"name": "torchvision/densenet121", "sobel": True}, 64),
    ({"name": "torchvision/mobilenet_v3_small"}, 64),
    ({"name": "torchvision/mobilenet_v3_small", "sobel": True}, 64),
    ({"name": "torchvision/efficientnet_b0"}, 64),
    ({"name": "torchvision/convnext_tiny"}, 64),
    ({"name": "torchvision/regnet_y_400mf"}, 64),
    ({"name": "torchvision/squeezenet1_1"}, 64),
    ({"name": "torchvision/googlenet"}, 64),
    ({"name": "torchvision/swin_t"}, 64),
    ({"name": "torchvision/vit_b_16"}, 48),
    ({"name": "torchvision/alexnet"}, 64),
]
LARGE: list[tuple[dict[str, Any], int]] = [
    ({"name": "vgg16"}, 224),
    ({"name": "torchvision/vgg11_bn"}, 64),
    ({"name": "torchvision/wide_resnet50_2"}, 32),
    ({"name": "torchvision/vit_b_32", "sobel": True}, 64),
    ({"name": "torchvision/maxvit_t"}, 224),
    ({"name": "torchvision/inception_v3", "sobel": True}, 299),
]


def trained(options: dict[str, Any], image_size: int) -> Backbone:
    """A network whose running statistics are not those of every new one, in evaluation mode."""
    backbone = build_backbone(ModelSection(**options), image_size, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in backbone.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0.0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return backbone.eval()


def published_state(name: str, backbone: Backbone) -> dict[str, torch.Tensor]:
    names = published_names(name, backbone)
    return {names[key]: tensor for key, tensor in backbone.state_dict().items()}


def check_equal(network: nn.Module, name: str, backbone: Backbone, image_size: int) -> None:
    network.load_state_dict(published_state(name, backbone))  # every tensor, and no other
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = backbone(images)
        features = network.eval()(backbone.stem(images))
    assert expected.std() > 1e-4, "features of all images alike would agree with anything"
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "image_size"),
    [*NETWORKS, *(pytest.param(*large, marks=pytest.mark.soak) for large in LARGE)],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_same_features(options: dict[str, Any], image_size: int) -> None:
    from torchvision.models import get_model

    backbone, name = trained(options, image_size), options["name"]
    counterpart = torchvision_counterpart(name, backbone, image_size)
    assert counterpart is not None
    network = replaced(get_model(counterpart.name, weights=None, **counterpart.options), counterpart.replace)
    check_equal(network, name, backbone, image_size)
    in_timm = timm_counterpart(name, backbone)
    assert (in_timm is not None) == (name.removeprefix("torchvision/") in OF_TIMM)
    if in_timm is not None:
        import timm

        network = replaced(timm.create_model(in_timm.name, **in_timm.options), in_timm.replace)
        check_equal(network, name, backbone, image_size)


def test_a_resnet_as_it_comes_needs_no_replacement_in_timm() -> None:
    import timm

    counterpart = timm_counterpart("resnet18", trained({"name": "resnet18"}, 64))
    assert counterpart is not None
    assert (counterpart.name, counterpart.options, counterpart.replace) == ("resnet18", {"num_classes": 0}, {})
    edges = timm_counterpart("resnet18", trained({"name": "resnet18", "sobel": True}, 64))
    assert edges is not None
    assert edges.options == {"num_classes": 0, "in_chans": 2}
    assert timm.__version__


def test_networks_that_nobody_else_has() -> None:
    for name, size in (("alexnet", 64), ("small_resnet", 32)):
        backbone = build_backbone(ModelSection(name=name), size, seed=0)
        assert torchvision_counterpart(name, backbone, size) is None
        assert timm_counterpart(name, backbone) is None


@pytest.mark.soak
def test_the_last_layer_of_every_network_of_torchvision() -> None:
    import torchvision
    from torchvision.models import list_models

    for name in list_models(module=torchvision.models):
        if name.startswith("regnet"):  # their builders compute with values, which a network without memory has not
            continue
        size = 299 if name == "inception_v3" else 224
        with torch.device("meta"), warnings.catch_warnings():
            network = reference(name, size, seed=0)
        kind = nn.Conv2d if name.startswith("squeezenet") else nn.Linear
        last = [layer for layer, module in network.named_modules() if isinstance(module, kind)][-1]
        expected = next((layer for family, layer in LAST_LAYERS.items() if name.startswith(family)), "fc")
        assert last == expected, name
