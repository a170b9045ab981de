"""Feature maps of images of any size, from a layer of a backbone's body.

Shapes: B images of H x W pixels, C channels of the map, h x w its positions.
"""

from __future__ import annotations

import torch
from torch import nn

from dcdist.data.augment import Normalization, to_float
from dcdist.errors import UsageError
from dcdist.models.backbone import Backbone, output_shape
from dcdist.models.numerics import Numerics

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


def last_map(body: nn.Sequential) -> str:
    """The last layer before the poolings that end a body: conv5 of alexnet, features.29 of torchvision/vgg16."""
    children = reversed(list(body.named_children()))
    name, layer = next((name, layer) for name, layer in children if not isinstance(layer, _POOLINGS))
    if isinstance(layer, nn.Sequential) and isinstance(layer[-1], _POOLINGS):
        return f"{name}.{last_map(layer)}"
    return name


class _Layer(nn.Module):
    """A body up to a layer: what the stem gives -> the layer's map."""

    def __init__(self, body: nn.Sequential, name: str) -> None:
        super().__init__()
        self._name = name
        self._backbone = Backbone(nn.Identity(), body, nn.Identity(), 0, 0, features_before_relu=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._backbone.layers(inputs, [self._name])[self._name]


class LayerMaps:
    """What a layer gives for images of any size, in full precision.

    Attributes:
        layer: its name.
    """

    def __init__(self, backbone: Backbone, layer: str | None, normalization: Normalization, numerics: Numerics) -> None:
        """Moves the backbone to the device and puts it into evaluation.

        Args:
            backbone: any whose body takes images of any size.
            layer: as `Backbone.layers` takes it; None: the last map before the last pooling.
            normalization: of pixels in 0..1.
            numerics: where it computes.
        """
        self.layer = layer or last_map(backbone.body)
        self._stem, self._body = backbone.stem, _Layer(backbone.body, self.layer)
        self._stages = backbone.layer_names()
        self._normalization = normalization
        self._device = numerics.device
        self._shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        numerics.place(backbone)
        backbone.eval()

    def require_any_size(self, long_side: int) -> int:
        """C; says so where the network cannot take images of different sizes, or their maps are no maps.

        Raises:
            UsageError: there is no such layer, it takes images of one size alone, or `long_side` is too small for it.
        """
        square = self.shape(long_side, long_side)
        wide = self.shape(long_side * 3 // 4, long_side)
        if not (len(square) == len(wide) == 4 and square[1] == wide[1] and square[2:] != wide[2:]):
            raise UsageError(
                f"--layer {self.layer} gives {list(square)} for {long_side} x {long_side} pixels and {list(wide)} for "
                f"{long_side * 3 // 4} x {long_side}, so it is no map [images, channels, height, width] of images of "
                "any size, which R-MAC needs: choose another layer, or a convolutional network"
            )
        return square[1]

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """[1, C, h, w] of an image, found without the computation.

        Raises:
            UsageError: there is no such layer, or the network cannot take such an image.
        """
        if (height, width) not in self._shapes:
            num_inputs = self._stem(torch.zeros(1, 3, 8, 8, device=self._device)).shape[1]
            try:
                self._shapes[height, width] = output_shape(self._body, (1, num_inputs, height, width))
            except KeyError as error:
                raise UsageError(
                    f"--layer: there is no layer {self.layer!r} in the network; its stages are "
                    f"{', '.join(self._stages)}, and what is a row of layers has them as STAGE.NUMBER"
                ) from error
            except (AssertionError, RuntimeError, ValueError) as error:
                raise UsageError(
                    f"layer {self.layer} has no map of an image of {height} x {width} pixels "
                    f"({' '.join(str(error).split())}): R-MAC needs a network that takes images of any size (vit and "
                    "maxvit do not), and --size must suit its poolings"
                ) from error
        return self._shapes[height, width]

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> [B, C, h, w] float32 on the device.

        Raises:
            UsageError: as `shape`.
        """
        self.shape(*pixels.shape[1:3])
        maps: torch.Tensor = self._body(self._stem(self._normalization(to_float(pixels.to(self._device)))))
        return maps
