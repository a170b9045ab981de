"""VGG-16 with batch normalisation as DeepCluster trains it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcdist.models.backbone import Backbone
from dcdist.models.sobel import Sobel
from dcdist.models.vgg import vgg16
from tests.models.maps import maps_of


@pytest.fixture(scope="module")
def network() -> Backbone:
    with torch.device("meta"):
        return vgg16(Sobel(), 2, 224)


def test_layers(network: Backbone) -> None:
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    channels = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [c.out_channels for c in convolutions] == channels
    assert [c.in_channels for c in convolutions] == [2, *channels[:-1]]
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {((3, 3), (1, 1), (1, 1))}
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 13
    assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == 5


def test_one_dropout_and_features_before_the_last_relu(network: Backbone) -> None:
    layers = list(network.top.children())
    assert [type(layer).__name__ for layer in layers] == ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert layers[1].in_features == 512 * 7 * 7
    assert (network.num_features, network.features_before_relu) == (4096, True)


def test_number_of_parameters(network: Backbone) -> None:
    inputs = [2, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512]
    outputs = [*inputs[1:], 512]
    convolutions = sum(out * (9 * into + 1) + 2 * out for into, out in zip(inputs, outputs, strict=True))
    expected = convolutions + 4096 * (25088 + 1) + 4096 * (4096 + 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_stages_and_their_maps() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        network = vgg16(nn.Identity(), 3, 32).eval()
        names = [f"conv{number}" for number in range(1, 14)]
        maps = maps_of(network, names, torch.rand(1, 3, 96, 96))
        last = network.maps(torch.rand(2, 3, 96, 96))
    assert [name for name, _ in network.body.named_children() if name.startswith("pool")] == [
        "pool2",
        "pool4",
        "pool7",
        "pool10",
        "pool13",
    ]
    assert [maps[name].shape[2] for name in names] == [96] * 2 + [48] * 2 + [24] * 3 + [12] * 3 + [6] * 3
    assert all(float(value.min()) >= 0 for value in maps.values()), "maps are those after the ReLU"
    assert last.shape == (2, network.num_channels, 3, 3) == (2, 512, 3, 3)


def test_smallest_image() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        assert vgg16(nn.Identity(), 3, 32).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4096)
    with pytest.raises(ValueError, match="image_size=31 is too small for vgg16; the smallest is 32"):
        vgg16(nn.Identity(), 3, 31)
