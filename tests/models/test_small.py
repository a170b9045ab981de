"""The small networks: batch normalisation everywhere, features averaged over positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dcdist.models.small import ResidualBlock, small_convnet, small_resnet, strided_resnet
from dcdist.models.sobel import Sobel
from tests.models.maps import maps_of


@pytest.mark.parametrize(("build", "num_features"), [(small_convnet, 128), (small_resnet, 256)])
@pytest.mark.parametrize("width", [0.5, 1.0])
def test_features(build, num_features: int, width: float) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        network = build(Sobel(), 2, 32, width=width).eval()
        features = network(torch.rand(3, 3, 32, 32))
    assert features.shape == (3, round(num_features * width))
    assert network.num_features == features.shape[1]
    assert network.features_before_relu is False
    assert float(features.min()) >= 0, "features come after a ReLU"


@pytest.mark.parametrize(
    ("build", "stages"),
    [
        (small_convnet, {"conv1": 16, "conv2": 16, "pool2": 8, "conv3": 8, "pool3": 4, "conv4": 4}),
        (small_resnet, {"conv1": 32, "pool1": 16, "conv2": 16, "block1": 8, "block2": 4}),
    ],
)
def test_stages_and_their_maps(build, stages: dict[str, int]) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        network = build(nn.Identity(), 3, 32).eval()
        maps = maps_of(network, list(stages), torch.rand(1, 3, 32, 32))
        last = network.maps(torch.rand(2, 3, 64, 64))
    assert [name for name, _ in network.body.named_children()] == list(stages)
    assert {name: value.shape[2] for name, value in maps.items()} == stages
    assert last.shape == (2, network.num_channels, 8, 8)


@pytest.mark.parametrize("build", [small_convnet, small_resnet])
def test_every_convolution_is_normalised_and_no_linear_layer_is_there(build) -> None:
    with torch.device("meta"):
        network = build(nn.Identity(), 3, 32)
    modules = list(network.modules())
    convolutions = [index for index, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    assert len(convolutions) >= 4
    assert all(isinstance(modules[index + 1], nn.BatchNorm2d) for index in convolutions)
    assert all(modules[index].bias is None for index in convolutions)
    assert not any(isinstance(module, nn.Linear) for module in modules)


@pytest.mark.parametrize("build", [small_convnet, small_resnet])
def test_smallest_image(build) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        assert bool(build(nn.Identity(), 3, 8).eval()(torch.zeros(1, 3, 8, 8)).isfinite().all())
    with pytest.raises(ValueError, match=f"image_size=7 is too small for {build.__name__}; the smallest is 8"):
        build(nn.Identity(), 3, 7)


def test_residual_block_adds_a_projection_of_its_input() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        block = ResidualBlock(2, 3, stride=2).eval()
        inputs = torch.randn(1, 2, 6, 6)
        outputs = block(inputs)
        convolved = block.second(block.first(inputs))
        # Fresh batch normalisation in evaluation divides by sqrt(1 + 1e-5).
        projected = functional.conv2d(inputs, block.shortcut[0].weight, stride=2) / (1 + 1e-5) ** 0.5
    assert outputs.shape == (1, 3, 3, 3)
    torch.testing.assert_close(outputs, torch.relu(convolved + projected))


def test_strided_resnet_has_no_layer_at_full_resolution() -> None:
    network = strided_resnet(nn.Identity(), 3, 32).eval()
    sizes = []
    for stage in network.body:
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 256)
    assert sizes == [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert network(torch.zeros(1, 3, 24, 24)).shape == (1, 256)
