"""What every backbone is: images in, feature maps on the way, rows to cluster out.

Shapes: B images, S side in pixels, C channels of a map, h x w its positions, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import torch
from torch import nn

OUTPUT = "output"  # the name of what a backbone gives out, among its layers


class Backbone(nn.Module):
    """A stem (identity or Sobel), a body of named stages, and a top.

    Attributes:
        stem: images [B, 3, S, S] -> what the first convolution sees.
        body: named stages; their maps are addressed by `body.get_submodule(name)`. Takes images of any size, unless the
            network's own description says otherwise.
        top: the last map, from images of the size that the network was built for -> features [B, D].
        num_channels: C of the last map.
        num_features: D, the width of what `forward` returns.
        features_before_relu: whether the features are those before a last ReLU, which a head then applies first
            (DeepCluster clusters fc7 before its ReLU and classifies after it).
    """

    def __init__(
        self,
        stem: nn.Module,
        body: nn.Sequential,
        top: nn.Module,
        num_channels: int,
        num_features: int,
        features_before_relu: bool,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.body = body
        self.top = top
        self.num_channels = num_channels
        self.num_features = num_features
        self.features_before_relu = features_before_relu

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images or tiles [B, 3, S, S] of any size -> the last map [B, C, h, w]."""
        maps: torch.Tensor = self.body(self.stem(images))
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, S, S] -> features [B, D]."""
        features: torch.Tensor = self.top(self.maps(images))
        return features

    def layer_names(self) -> list[str]:
        """The stages of the body that have weights, in order: all but the poolings."""
        return [name for name, stage in self.body.named_children() if any(True for _ in stage.parameters())]

    def layers(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Normalised images [B, 3, S, S] -> the maps of some layers, by name; nothing is computed past the last one.

        Args:
            images: of the size that the network was built for, where OUTPUT are asked for.
            names: stages of the body, or what lies in them ("features.3"); OUTPUT is the backbone's output [B, D].

        Raises:
            KeyError: the body has no such layer.
        """
        found: dict[str, torch.Tensor] = {}
        to_the_end = OUTPUT in names
        maps = _forward(self.body, self.stem(images), set(names) - {OUTPUT}, found, to_the_end)
        if to_the_end:
            found[OUTPUT] = self.top(maps)
        if missing := sorted(set(names) - found.keys()):
            raise KeyError(missing[0])
        return found

    def map_shape(self, side: int) -> tuple[int, ...]:
        """[1, C, h, w] of an image or tile of side x side, found without the computation.

        Raises:
            RuntimeError, ValueError, AssertionError: the network cannot take such an image.
        """
        with torch.no_grad():
            inputs = self.stem(torch.zeros(1, 3, side, side, device=next(self.parameters()).device))
        return output_shape(self.body, inputs.shape)

    def feature_shape(self, side: int) -> tuple[int, ...]:
        """[1, D] of an image of side x side; as `map_shape`."""
        return output_shape(self.top, self.map_shape(side))


def _forward(
    module: nn.Sequential,
    inputs: torch.Tensor,
    wanted: Collection[str],
    found: dict[str, torch.Tensor],
    to_the_end: bool,
    prefix: str = "",
) -> torch.Tensor:
    """Runs a chain of stages until the wanted outputs are found, which may lie in a stage that is a chain itself."""
    for name, child in module.named_children():
        path = prefix + name
        if isinstance(child, nn.Sequential) and any(other.startswith(f"{path}.") for other in wanted):
            inputs = _forward(child, inputs, wanted, found, to_the_end, f"{path}.")
        else:
            inputs = child(inputs)
        if path in wanted:
            found[path] = inputs.clone() if prefix else inputs  # within a stage, what comes next may work in place
        if not to_the_end and len(found) == len(wanted):
            break
    return inputs


def convolution(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, padding: int = 1, bias: bool = True
) -> nn.Sequential:
    """The usual stage: convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def averaged(stem: nn.Module, body: nn.Sequential, num_channels: int) -> Backbone:
    """A backbone whose features are the last map's averages over its positions, D = C."""
    top = nn.Sequential(OrderedDict[str, nn.Module](avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    return Backbone(stem, body, top, num_channels, num_features=num_channels, features_before_relu=False)


def require_size(image_size: int, smallest: int, name: str) -> None:
    """Raises ValueError where images are too small for a network."""
    if image_size < smallest:
        raise ValueError(f"views.image_size={image_size} is too small for {name}; the smallest is {smallest}")


def narrow(layer: nn.Conv2d, in_channels: int) -> None:
    """Leaves a first convolution its weights for the first channels alone, in place.

    Sobel gives 2 channels where published networks take 3; what is left is initialised as they initialise it.
    """
    assert in_channels <= layer.in_channels, f"{in_channels} channels for a convolution over {layer.in_channels}"
    if in_channels < layer.in_channels:
        layer.in_channels = in_channels
        layer.weight = nn.Parameter(layer.weight.detach()[:, :in_channels].clone())


def initialise_published(module: nn.Module) -> None:
    """The initialisation of the published DeepCluster networks.

    Convolutions N(0, sqrt(2 / (kernel area * output channels))), linear layers N(0, 0.01), biases 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def output_shape(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what a module in evaluation gives for an input, found without computing or allocating it.

    Raises:
        RuntimeError: the module cannot take such an input (most often: the image is too small).
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    was_training = module.training
    module.eval()  # batch normalisation refuses to train on one value a channel
    try:
        with torch.no_grad():
            outputs = torch.func.functional_call(module, on_meta, (torch.empty(*input_shape, device="meta"),))
    finally:
        module.train(was_training)
    return tuple(outputs.shape)
