"""What torchvision, and the published networks of DeepCluster, call the layers of a backbone.

Loading weights goes from their names to a backbone's (initial_weights.py), exporting them goes the other way.
"""

from __future__ import annotations

from torch import nn

from dcdist.models.backbone import Backbone

TORCHVISION = "torchvision/"  # before the names of torchvision's networks in model.name
RESNETS = ("resnet18", "resnet34", "resnet50")
NUMBERED = ("alexnet", "vgg16")
# Where backbones keep the children of torchvision's network of the same name; the first prefix that fits is left out.
_OF_A_RESNET = ("body.stem.", "body.")
_OF_A_TRANSFORMER = ("body.transformer.",)
_OF_TORCHVISION = ("body.", "top.")


def published_names(model_name: str, backbone: Backbone) -> dict[str, str]:
    """What each tensor of a backbone is called elsewhere: its own name -> the published one.

    torchvision's names wherever torchvision has the architecture (vgg16: that of vgg16_bn), those of DeepCluster's
    published files for alexnet; the small networks are known nowhere else and keep their own.

    Args:
        model_name: model.name of the config that the backbone was built from.
        backbone: the network.
    """
    if model_name in NUMBERED:
        published = {own: name for name, own in numbered_layers(backbone).items()}
        names = {key: _renamed(key, published) for key in backbone.state_dict()}
    else:
        names = {key: _without_place(key, _places(model_name)) for key in backbone.state_dict()}
    assert len(set(names.values())) == len(names), f"two tensors of {model_name} share a published name"
    return names


def numbered_layers(backbone: Backbone) -> dict[str, str]:
    """AlexNet and VGG number their layers, in torchvision and in the code of DeepCluster alike: features.0 -> own name.

    Of other networks the numbers mean nothing, and no published file has them.
    """
    leaves = [name for name, layer in backbone.body.named_modules() if not list(layer.children())]
    layers = [name for name, layer in backbone.top.named_children() if not isinstance(layer, nn.Flatten)]
    numbered = {f"features.{number}": f"body.{name}" for number, name in enumerate(leaves)}
    return numbered | {f"classifier.{number}": f"top.{name}" for number, name in enumerate(layers)}


def _places(model_name: str) -> tuple[str, ...]:
    if model_name in RESNETS:
        return _OF_A_RESNET
    if model_name.startswith(f"{TORCHVISION}vit_"):
        return _OF_A_TRANSFORMER
    return _OF_TORCHVISION if model_name.startswith(TORCHVISION) else ()


def _without_place(key: str, places: tuple[str, ...]) -> str:
    return next((key.removeprefix(place) for place in places if key.startswith(place)), key)


def _renamed(key: str, layers: dict[str, str]) -> str:
    layer, _, kind = key.rpartition(".")
    return f"{layers[layer]}.{kind}"
