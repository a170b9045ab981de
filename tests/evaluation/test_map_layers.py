"""Maps of any image size: which layer is the last map, what is computed, which networks are refused."""

from __future__ import annotations

import pytest
import torch

from dcdist.build.run import build_backbone
from dcdist.config.schema import ModelSection
from dcdist.data.augment import Normalization, to_float
from dcdist.errors import UsageError
from dcdist.evaluation.map_layers import LayerMaps, last_map
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics

NUMERICS = Numerics(torch.device("cpu"), bfloat16=False, channels_last=False)
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def backbone(name: str, image_size: int = 64, **options: object) -> Backbone:
    return build_backbone(ModelSection.model_validate({"name": name, **options}), image_size, seed=0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "conv5"),
        ("vgg16", "conv13"),
        ("resnet18", "layer4"),
        ("small_convnet", "conv4"),
        ("torchvision/vgg11", "features.19"),
        ("torchvision/densenet121", "relu"),
    ],
)
def test_the_last_map_before_the_last_pooling(name: str, layer: str) -> None:
    assert last_map(backbone(name).body) == layer


def test_alexnets_maps_are_those_of_conv5_after_its_relu() -> None:
    """Its last pooling and the layers behind it are left out; Sobel and the run's normalisation are not."""
    network = backbone("alexnet", sobel=True)
    maps = LayerMaps(network, None, NORMALIZATION, NUMERICS)
    pixels = torch.randint(0, 256, (1, 95, 127, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = maps(pixels)
    with torch.no_grad():
        expected = network.stem(NORMALIZATION(to_float(pixels)))
        for stage in list(network.body)[:-1]:
            expected = stage(expected)
    assert found.shape == (1, 256, 5, 7) == maps.shape(95, 127)
    with torch.no_grad():
        assert network.maps(torch.zeros(1, 3, 95, 127)).shape == (1, 256, 2, 3)
    torch.testing.assert_close(found, expected)
    assert not network.training


def test_a_layer_may_be_chosen() -> None:
    network = backbone("resnet18")
    assert LayerMaps(network, "layer2", NORMALIZATION, NUMERICS).shape(64, 96) == (1, 128, 8, 12)
    nested = backbone("torchvision/squeezenet1_1")
    assert LayerMaps(nested, "features.1", NORMALIZATION, NUMERICS).shape(65, 97) == (1, 64, 32, 48)


def test_an_unknown_layer_comes_with_the_choices() -> None:
    for name, layer, stages in (
        ("alexnet", "conv9", "conv1, conv2, conv3, conv4, conv5"),
        ("torchvision/squeezenet1_1", "features.30", "features"),
        ("resnet18", "layer1.0.conv1", "stem, layer1, layer2, layer3, layer4"),
    ):
        maps = LayerMaps(backbone(name), layer, NORMALIZATION, NUMERICS)
        with pytest.raises(UsageError, match=f"no layer '{layer}' in the network; its stages are {stages},"):
            maps.require_any_size(64)


def test_a_network_of_one_image_size_is_refused() -> None:
    maps = LayerMaps(backbone("torchvision/vit_b_32"), None, NORMALIZATION, NUMERICS)
    with pytest.raises(UsageError, match=r"no map of an image of 128 x 128 pixels .*vit and maxvit do not"):
        maps.require_any_size(128)


def test_channels_last_layers_are_refused() -> None:
    """What swin's stages pass on is [B, h, w, C]."""
    network = backbone("torchvision/swin_t")
    with pytest.raises(UsageError, match="so it is no map"):
        LayerMaps(network, "features.1", NORMALIZATION, NUMERICS).require_any_size(128)
    assert LayerMaps(network, None, NORMALIZATION, NUMERICS).require_any_size(128) == 768


def test_images_too_small_for_the_poolings_are_refused() -> None:
    maps = LayerMaps(backbone("alexnet"), None, NORMALIZATION, NUMERICS)
    assert maps.require_any_size(64) == 256
    with pytest.raises(UsageError, match="layer conv5 has no map of an image of 8 x 60 pixels"):
        maps(torch.zeros(1, 8, 60, 3, dtype=torch.uint8))
