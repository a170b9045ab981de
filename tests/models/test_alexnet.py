"""AlexNet as DeepCluster trains it: layers, shapes, size, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcdist.models.alexnet import alexnet
from dcdist.models.backbone import Backbone
from dcdist.models.sobel import Sobel
from tests.models.maps import maps_of

# output channels, kernel, stride, padding
PUBLISHED = [(96, 11, 4, 2), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)]
STAGES = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
SIDES = [55, 27, 27, 13, 13, 13, 13, 6]


@pytest.fixture(scope="module")
def network() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return alexnet(Sobel(), 2, 224)


def of_type(network: nn.Module, kind: type[nn.Module]) -> list:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_convolutions_are_the_published_ones_each_with_batch_normalisation(network: Backbone) -> None:
    convolutions = of_type(network, nn.Conv2d)
    found = [(c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0]) for c in convolutions]
    assert found == PUBLISHED
    assert [c.in_channels for c in convolutions] == [2, 96, 256, 384, 384]
    assert [b.num_features for b in of_type(network, nn.BatchNorm2d)] == [channels for channels, *_ in PUBLISHED]
    assert [(p.kernel_size, p.stride) for p in of_type(network, nn.MaxPool2d)] == [(3, 2)] * 3
    assert of_type(network, nn.LocalResponseNorm) == []


def test_classifier_is_drop_fc6_relu_drop_fc7_without_the_last_relu(network: Backbone) -> None:
    types = [type(layer).__name__ for layer in network.top.children()]
    assert types == ["Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [(layer.in_features, layer.out_features) for layer in of_type(network, nn.Linear)] == [
        (9216, 4096),
        (4096, 4096),
    ]
    assert [layer.p for layer in of_type(network, nn.Dropout)] == [0.5, 0.5]
    assert (network.num_features, network.features_before_relu) == (4096, True)


def test_shapes_on_the_way_by_the_names_of_the_stages(network: Backbone) -> None:
    assert list(dict(network.body.named_children())) == STAGES
    with torch.no_grad():
        maps = maps_of(network.eval(), STAGES, torch.rand(1, 3, 224, 224))
        features = network(torch.zeros(1, 3, 224, 224))
    assert [maps[name].shape[2] for name in STAGES] == SIDES
    assert [maps[name].shape[1] for name in STAGES if name.startswith("conv")] == [c for c, *_ in PUBLISHED]
    assert all(float(value.min()) >= 0 for value in maps.values()), "maps are those after the ReLU"
    assert features.shape == (1, 4096)


def test_maps_of_images_of_another_size(network: Backbone) -> None:
    with torch.no_grad():
        assert network.maps(torch.zeros(2, 3, 64, 64)).shape == (2, network.num_channels, 1, 1)
        assert network.maps(torch.zeros(2, 3, 99, 99)).shape == (2, 256, 2, 2)


def test_number_of_parameters(network: Backbone) -> None:
    channels = [2, 96, 256, 384, 384, 256]
    convolutions = sum(
        out * (inputs * kernel**2 + 1) + 2 * out
        for inputs, (out, kernel, _, _) in zip(channels, PUBLISHED, strict=False)
    )
    expected = convolutions + 4096 * (9216 + 1) + 4096 * (4096 + 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 58_272_480


def test_initialisation(network: Backbone) -> None:
    for convolution in of_type(network, nn.Conv2d):
        n = convolution.kernel_size[0] ** 2 * convolution.out_channels
        # The standard deviation of a standard deviation from m normal draws is 1 / sqrt(2 m).
        tolerance = 5 / (2 * convolution.weight.numel()) ** 0.5
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / n) ** 0.5, rel=tolerance)
        assert not convolution.bias.any()
    for linear in of_type(network, nn.Linear):
        assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=1e-3)
        assert not linear.bias.any()
    for norm in of_type(network, nn.BatchNorm2d):
        assert bool((norm.weight == 1).all())
        assert not norm.bias.any()


def test_smallest_image() -> None:
    with torch.device("meta"):
        assert alexnet(nn.Identity(), 3, 63).top.fc6.in_features == 256
    for size in (62, 16, 1):
        with pytest.raises(ValueError, match=f"image_size={size} is too small for alexnet; the smallest is 63"):
            alexnet(nn.Identity(), 3, size)
