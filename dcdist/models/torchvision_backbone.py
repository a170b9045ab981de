"""Any classification network of torchvision without its last linear layer, under torchvision's names.

Shapes: S side of the images in pixels, C channels of the last map, h x w its positions, D features.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from typing import Any

from torch import nn

from dcdist.models.backbone import Backbone, narrow, output_shape

# Children of torchvision's networks that come after the last feature map; all others come before it.
AFTER_THE_MAP = {"avgpool", "flatten", "dropout", "fc", "classifier", "head"}


def torchvision_backbone(stem: nn.Module, in_channels: int, image_size: int, name: str) -> Backbone:
    """A network of torchvision with initial weights as torchvision draws them; features are the classifier's inputs.

    The body's stages are the network's own children up to the last map, which keep their names (`features.3`,
    `layer2`), `top` is the rest. The body takes images of any size, except for the transformers with a position
    embedding (vit_*, whose map is the class token, [B, D, 1, 1]) and the grid of maxvit_t: these are built for
    image_size, and their maps cannot be taken of tiles of another one. Auxiliary classifiers are left out.

    Args:
        stem: identity or Sobel.
        in_channels: 3, or 2 after Sobel; then the first convolution keeps its weights for two channels.
        image_size: S.
        name: as torchvision calls it, after "torchvision/" or alone.

    Raises:
        ValueError: torchvision has no classification network of this name, or it cannot take images of this size.
    """
    from torchvision.models import get_model  # takes seconds

    name = name.removeprefix("torchvision/")
    _require_known(name)
    try:
        network = get_model(name, weights=None, **_options(name, image_size))
    except (AssertionError, ValueError) as error:
        raise _unsuitable(name, image_size, error) from error
    narrow(next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), in_channels)
    body, top = _split_transformer(network) if name.startswith("vit_") else _split(network)
    try:
        map_shape = output_shape(body, (1, in_channels, image_size, image_size))
        _, num_features = output_shape(top, map_shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unsuitable(name, image_size, error) from error
    return Backbone(stem, body, top, map_shape[1], num_features, features_before_relu=False)


def _require_known(name: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, cutoff=0.0)
        raise ValueError(
            f"model.name='torchvision/{name}' is no classification network of torchvision {torchvision.__version__}; "
            f"nearest: {', '.join(f'torchvision/{other}' for other in nearest)}"
        )


def _options(name: str, image_size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name == "maxvit_t":
        return {"input_size": (image_size, image_size)}
    if name in {"googlenet", "inception_v3"}:
        return {"aux_logits": False, "init_weights": True}
    return {}


def _unsuitable(name: str, image_size: int, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()).rstrip(".")
    return ValueError(
        f"views.image_size={image_size} does not suit torchvision/{name}: {reason}; set views.image_size to the size "
        "that it was published for, mostly 224 (inception_v3: 299)"
    )


def _split(network: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Body and top of a network whose children are in the order of its forward pass.

    What such networks do between their children is a ReLU (densenet*), the average over the positions and flattening.
    """
    before = OrderedDict[str, nn.Module]()
    after = OrderedDict[str, nn.Module](avgpool=nn.AdaptiveAvgPool2d(1))
    for name, child in network.named_children():
        if name in AFTER_THE_MAP:
            after[name] = child
        else:
            before[name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
    if type(network).__name__ == "DenseNet":
        before["relu"] = nn.ReLU()
    name, classifier = after.popitem()
    inputs = _without_last_layer(classifier)
    if not any(isinstance(layer, nn.Flatten) for layer in (*after.values(), *inputs)):
        after["flatten"] = nn.Flatten()
    if len(inputs):
        after[name] = inputs
    return nn.Sequential(before), nn.Sequential(after)


def _without_last_layer(classifier: nn.Module) -> nn.Sequential:
    """What comes before the last linear layer; before the last convolution of squeezenet*, which classify positions."""
    layers = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
    while not isinstance(layers.pop(), nn.Linear | nn.Conv2d):
        pass
    return nn.Sequential(*layers)


def _split_transformer(network: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """A map of one position, the class token; what makes it is no chain of stages."""
    network.heads = nn.Identity()
    as_map = nn.Unflatten(1, (network.hidden_dim, 1, 1))
    body = nn.Sequential(OrderedDict[str, nn.Module](transformer=network, unflatten=as_map))
    return body, nn.Sequential(OrderedDict(flatten=nn.Flatten()))
