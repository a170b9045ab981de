"""ResNets: torchvision's networks in other order, and the stem for small images."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from dcdist.models.backbone import output_shape
from dcdist.models.resnet import resnet18, resnet34, resnet50
from dcdist.models.sobel import Sobel
from tests.models.maps import maps_of

NETWORKS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


def number_of_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "num_features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_number_of_parameters_is_that_of_torchvision(name: str, num_features: int) -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        expected = get_model(name, weights=None)
        network = NETWORKS[name](nn.Identity(), 3, 224)
    classifier = number_of_parameters(expected.fc)
    assert number_of_parameters(network) == number_of_parameters(expected) - classifier
    assert network.num_features == network.num_channels == num_features
    assert network.features_before_relu is False
    assert output_shape(network, (1, 3, 224, 224)) == (1, num_features)


@pytest.mark.parametrize("zero_init_residual", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision(name: str, zero_init_residual: bool) -> None:
    from torchvision.models import get_model

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        expected = get_model(name, weights=None, zero_init_residual=zero_init_residual)
        torch.manual_seed(0)
        network = NETWORKS[name](nn.Identity(), 3, 64, zero_init_residual=zero_init_residual)
        expected.fc = nn.Identity()
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(network(images), expected(images)), "in training"
        assert torch.equal(network.eval()(images), expected.eval()(images)), "in evaluation"
    stages = {f"layer{number}": 64 // 2 ** (number + 1) for number in (1, 2, 3, 4)}
    assert [name for name, _ in network.body.named_children()] == ["stem", "maxpool", *stages]
    maps = maps_of(network, ["stem", *stages], images)
    assert {name: value.shape[2] for name, value in maps.items()} == {"stem": 32, **stages}
    assert all(float(value.min()) >= 0 for value in maps.values()), "maps are those after the ReLU"


def test_stem_for_small_images() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = resnet18(Sobel(), 2, 32, small_images=True).eval()
        names = ["stem", "layer1", "layer2", "layer3", "layer4"]
        maps = maps_of(network, names, torch.rand(1, 3, 32, 32))
        assert network(torch.rand(1, 3, 32, 32)).shape == (1, 512)
    assert [name for name, _ in network.body.named_children()] == names
    assert [maps[name].shape[1:] for name in names] == [
        (64, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]
    weight = network.body.stem.conv1.weight.detach()
    assert weight.shape == (64, 2, 3, 3)
    # He et al.: standard deviation sqrt(2 / (9 * 64)); that of m draws is known to 1 / sqrt(2 m).
    assert float(weight.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=5 / (2 * weight.numel()) ** 0.5)


def test_edges_as_input() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        weight = resnet18(nn.Identity(), 3, 32).body.stem.conv1.weight
        torch.manual_seed(0)
        network = resnet18(Sobel(), 2, 32)
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert torch.equal(network.body.stem.conv1.weight, weight[:, :2])


@pytest.mark.parametrize(
    ("build", "smallest"), [(resnet18, 32), (resnet50, 32), (partial(resnet34, small_images=True), 8)]
)
def test_smallest_image(build, smallest: int) -> None:
    with torch.device("meta"):
        network = build(nn.Identity(), 3, smallest)
    assert output_shape(network.body, (1, 3, smallest, smallest))[2:] == (1, 1)
    with pytest.raises(ValueError, match=rf"image_size={smallest - 1} is too small for resnet\d\d; the smallest is"):
        build(nn.Identity(), 3, smallest - 1)
