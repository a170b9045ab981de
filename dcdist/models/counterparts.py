"""How to build, with torchvision or timm alone, the network that holds a backbone's tensors and gives its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dcdist.models.backbone import Backbone
from dcdist.models.published_names import RESNETS, TORCHVISION, published_names

# Architectures that timm builds of the same modules under the same names; all others it has under other names.
OF_TIMM = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *("densenet121", "densenet161", "densenet169", "densenet201", "inception_v3"),
)
# The last layer of torchvision's classifiers, by how the names of the networks begin; of all others it is fc.
LAST_LAYERS = {
    "alexnet": "classifier.6",
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier.1",
    "maxvit": "classifier.5",
    "mnasnet": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3": "classifier.3",
    "squeezenet": "classifier.1",
    "swin": "head",
    "vgg": "classifier.6",
    "vit": "heads.head",
}
IDENTITY: Mapping[str, Any] = {"class": "Identity", "arguments": {}}
_INPUTS_OF_VGG = 512 * 7 * 7  # of the first linear layer, from images of 224 pixels


@dataclass(frozen=True)
class Counterpart:
    """A network of another library, with a backbone's tensors under their published names and its features as output.

    Attributes:
        name: what torchvision.models.get_model, or timm.create_model, takes.
        options: their keyword arguments.
        replace: layers to put in the place of the network's own before the weights are loaded: for the name of each
            the class, of torch.nn, and its keyword arguments.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    replace: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def torchvision_counterpart(model_name: str, backbone: Backbone, image_size: int) -> Counterpart | None:
    """The network of torchvision, which takes what the backbone's stem gives; None where torchvision has none.

    Args:
        model_name: model.name of the config.
        backbone: as built for that name.
        image_size: S, side of the images that it was built for.
    """
    if model_name == "vgg16":
        return Counterpart("vgg16_bn", {}, {**_first_layers(model_name, backbone), **_end_of_vgg16(backbone)})
    name = model_name.removeprefix(TORCHVISION)
    if model_name not in RESNETS and name == model_name:
        return None
    options = _options(name, image_size)
    replace = {**_first_layers(model_name, backbone), _last_layer(name): IDENTITY}
    return Counterpart(name, options, replace)


def timm_counterpart(model_name: str, backbone: Backbone) -> Counterpart | None:
    """As `torchvision_counterpart`, of timm."""
    name = model_name.removeprefix(TORCHVISION)
    if name not in OF_TIMM:
        return None
    options: dict[str, Any] = {"num_classes": 0}
    first = _first_layers(model_name, backbone)
    if len(first) == 1:  # it is another one for its number of inputs alone
        options["in_chans"] = _first_convolution(backbone)[1].in_channels
        first = {}
    return Counterpart(name, options, first)


def _first_layers(model_name: str, backbone: Backbone) -> dict[str, Mapping[str, Any]]:
    """What the first layers are where they are not as published: with two inputs after Sobel, or for small images."""
    own_name, layer = _first_convolution(backbone)
    small_images = model_name in RESNETS and not hasattr(backbone.body, "maxpool")
    replace: dict[str, Mapping[str, Any]] = {}
    if layer.in_channels != 3 or small_images:
        weight = published_names(model_name, backbone)[f"{own_name}.weight"]
        replace[weight.removesuffix(".weight")] = _convolution(layer)
    if small_images:
        replace["maxpool"] = IDENTITY
    return replace


def _first_convolution(backbone: Backbone) -> tuple[str, nn.Conv2d]:
    named = backbone.body.named_modules(prefix="body")
    return next((name, layer) for name, layer in named if isinstance(layer, nn.Conv2d))


def _convolution(layer: nn.Conv2d) -> Mapping[str, Any]:
    assert layer.groups == 1, "no network groups the colours"
    assert layer.dilation == (1, 1), "no network dilates its first convolution"
    arguments = {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": list(layer.kernel_size),
        "stride": list(layer.stride),
        "padding": list(layer.padding),
        "bias": layer.bias is not None,
    }
    return {"class": "Conv2d", "arguments": arguments}


def _end_of_vgg16(backbone: Backbone) -> dict[str, Mapping[str, Any]]:
    """Features are fc7 before its ReLU; fc6 takes all positions of the map, as many as the images give."""
    replace = dict.fromkeys(("classifier.4", "classifier.5", "classifier.6"), IDENTITY)
    fc6 = backbone.top.get_submodule("fc6")
    assert isinstance(fc6, nn.Linear)
    if fc6.in_features != _INPUTS_OF_VGG:
        arguments = {"in_features": fc6.in_features, "out_features": fc6.out_features}
        replace |= {"avgpool": IDENTITY, "classifier.0": {"class": "Linear", "arguments": arguments}}
    return replace


def _options(name: str, image_size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name == "maxvit_t":
        return {"input_size": [image_size, image_size]}
    if name in {"googlenet", "inception_v3"}:
        return {"aux_logits": False, "init_weights": False}
    return {}


def _last_layer(name: str) -> str:
    """The classifier's last layer, whose inputs are the features."""
    return next((layer for family, layer in LAST_LAYERS.items() if name.startswith(family)), "fc")
