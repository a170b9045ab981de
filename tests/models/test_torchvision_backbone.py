"""Networks of torchvision: the same values as theirs up to the last linear layer, by body and top."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from dcdist.models.backbone import output_shape
from dcdist.models.sobel import Sobel
from dcdist.models.torchvision_backbone import torchvision_backbone
from tests.models.torchvision_reference import reference, without_last_layer

# One small network of each of torchvision's classes, with a size of images; the first of them run by default.
QUICK = {
    "mobilenet_v3_small": 64,
    "densenet121": 32,
    "googlenet": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64,
    "regnet_y_400mf": 64,
    "swin_t": 64,
    "efficientnet_b0": 64,
}
THOROUGH = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "inception_v3": 75,
    "maxvit_t": 224,
    "resnet18": 64,
    "vgg11_bn": 64,
    "vit_b_16": 64,
}
# Shapes alone: map and features at 224, and the map of a tile of 96 where the body takes one.
SHAPES = {
    "convnext_tiny": ((768, 7, 7), 768, (768, 3, 3)),
    "efficientnet_b0": ((1280, 7, 7), 1280, (1280, 3, 3)),
    "squeezenet1_0": ((512, 13, 13), 512, (512, 5, 5)),
    "vgg11": ((512, 7, 7), 4096, (512, 3, 3)),
    "swin_t": ((768, 7, 7), 768, (768, 3, 3)),
    "vit_b_16": ((768, 1, 1), 768, None),
    "maxvit_t": ((512, 7, 7), 512, None),
}


@pytest.mark.parametrize(
    ("name", "size"), [*QUICK.items(), *(pytest.param(*item, marks=pytest.mark.soak) for item in THOROUGH.items())]
)
def test_equals_torchvision(name: str, size: int) -> None:
    expected = without_last_layer(reference(name, size, seed=0))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = torchvision_backbone(nn.Identity(), 3, size, f"torchvision/{name}")
        assert network.training
        images = torch.rand(2, 3, size, size)
        for mode in (True, False):  # training: dropout and stochastic depth draw the same
            expected.train(mode)
            network.train(mode)
            torch.manual_seed(1)
            targets = expected(images)
            torch.manual_seed(1)
            torch.testing.assert_close(network(images), targets, rtol=1e-4, atol=1e-5)
        maps = network.maps(images)
    assert targets.shape == (2, network.num_features)
    assert maps.ndim == 4
    assert maps.shape[1] == network.num_channels
    copy.deepcopy(network)


def check_shapes(name: str) -> tuple[tuple[int, ...], int, tuple[int, ...] | None]:
    # torchvision's code for RegNet computes its widths with tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = torchvision_backbone(nn.Identity(), 3, 224, name)
    maps = output_shape(network.body, (2, 3, 224, 224))
    assert maps[:2] == (2, network.num_channels)
    assert output_shape(network, (2, 3, 224, 224)) == (2, network.num_features)
    assert not hasattr(network, "AuxLogits")
    tile = None
    with contextlib.suppress(AssertionError, RuntimeError):
        tile = output_shape(network.body, (2, 3, 96, 96))[1:]
    return maps[1:], network.num_features, tile


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    assert check_shapes(name) == SHAPES[name]


@pytest.mark.soak
def test_shapes_of_all() -> None:
    from torchvision import models

    known = models.list_models(module=models)
    assert len(known) >= 80
    without_tiles = [name for name in known if check_shapes(name)[2] is None]
    assert without_tiles == [name for name in known if name.startswith(("vit_", "maxvit_"))]


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121"])
def test_edges_as_input(name: str) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        colours = torchvision_backbone(nn.Identity(), 3, 64, name)
        torch.manual_seed(0)
        edges = torchvision_backbone(Sobel(), 2, 64, name)
        assert edges(torch.rand(2, 3, 64, 64)).shape == (2, edges.num_features)
    first = next(iter(edges.body.parameters()))
    assert torch.equal(first, next(iter(colours.body.parameters()))[:, :2])
    assert functional.conv2d(torch.rand(1, 2, 9, 9), first).shape[1] == first.shape[0]


def test_every_parameter_takes_part() -> None:
    with torch.random.fork_rng():
        network = torchvision_backbone(nn.Identity(), 3, 64, "googlenet")
        network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters()), "DDP refuses others"


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"model.name='torchvision/convnext_tinny' is no .*nearest: torchvision/conv"):
        torchvision_backbone(nn.Identity(), 3, 224, "torchvision/convnext_tinny")
    with pytest.raises(ValueError, match="nearest: torchvision/"):  # segmentation
        torchvision_backbone(nn.Identity(), 3, 224, "fcn_resnet50")


@pytest.mark.parametrize(("name", "size"), [("alexnet", 62), ("inception_v3", 74), ("vit_b_16", 100), ("maxvit_t", 96)])
def test_unsuitable_size(name: str, size: int) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=f"views.image_size={size} does not suit torchvision/{name}: .*; set views"),
    ):
        torchvision_backbone(nn.Identity(), 3, size, name)
