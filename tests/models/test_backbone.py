"""What every backbone is made of, and the two helpers that networks share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcdist.models.backbone import OUTPUT, narrow, output_shape
from dcdist.models.small import small_convnet
from dcdist.models.sobel import Sobel


def test_forward_is_the_top_of_the_maps() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        network = small_convnet(Sobel(), 2, 32).eval()
        images = torch.rand(2, 3, 32, 32)
        maps = network.maps(images)
        assert torch.equal(maps, network.body(network.stem(images)))
        assert torch.equal(network(images), network.top(maps))
    assert maps.shape[1] == network.num_channels


def test_layers_are_the_maps_on_the_way() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        network = small_convnet(Sobel(), 2, 32).eval()
        images = torch.rand(2, 3, 32, 32)
        found = network.layers(images, ["conv2", "conv1.1", OUTPUT])
        assert network.layer_names() == ["conv1", "conv2", "conv3", "conv4"]
        edges = network.stem(images)
        normalised = network.body.conv1[1](network.body.conv1[0](edges))
        assert torch.equal(found["conv1.1"], normalised), "before the ReLU that works in place"
        assert torch.equal(found["conv2"], network.body.conv2(network.body.conv1(edges)))
        assert torch.equal(found[OUTPUT], network(images))
    with pytest.raises(KeyError, match="conv9"):
        network.layers(images, ["conv9"])


def test_nothing_is_computed_past_the_last_layer_that_is_wanted() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        network = small_convnet(Sobel(), 2, 32).eval()
        network.body.conv3 = nn.Linear(1, 1)  # would fail
        assert network.layers(torch.rand(1, 3, 32, 32), ["conv2"])["conv2"].shape[0] == 1


def test_narrow_keeps_the_weights_of_the_first_channels() -> None:
    with torch.random.fork_rng():
        layer = nn.Conv2d(3, 8, 3, bias=False)
        weight = layer.weight.detach().clone()
        images = torch.rand(1, 2, 8, 8)
    narrow(layer, 3)
    assert torch.equal(layer.weight, weight)
    narrow(layer, 2)
    assert torch.equal(layer.weight, weight[:, :2])
    assert layer(images).shape == (1, 8, 6, 6)
    assert layer.weight.requires_grad


def test_output_shape_computes_nothing_and_changes_nothing() -> None:
    with torch.random.fork_rng():
        network = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert output_shape(network, (1, 3, 3, 3)) == (1, 5, 1, 1), "one value a channel"
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert output_shape(network, (4096, 3, 9999, 9999)) == (4096, 5, 4999, 4999)
    with pytest.raises(RuntimeError, match="size"):
        output_shape(network.eval(), (1, 3, 2, 2))
    assert not network.training
