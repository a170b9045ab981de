"""What a run has whatever its stages are: images, backbone, numerics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from dcdist.config.schema import DataSection, ModelSection, TrainSection
from dcdist.data.source import ImageSource, open_source
from dcdist.distributed.seeding import derive_seed
from dcdist.errors import UsageError
from dcdist.models.alexnet import alexnet
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics
from dcdist.models.resnet import resnet18, resnet34, resnet50
from dcdist.models.small import small_convnet, small_resnet, strided_resnet
from dcdist.models.sobel import Sobel
from dcdist.models.torchvision_backbone import torchvision_backbone
from dcdist.models.vgg import vgg16

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "small_convnet": small_convnet,
    "small_resnet": small_resnet,
    "strided_resnet": strided_resnet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
# The keys of `model` that a network takes beside its name; a key that it would ignore is refused.
OPTIONS = {
    "small_convnet": ("width",),
    "small_resnet": ("width",),
    "strided_resnet": ("width",),
    "resnet18": ("small_images",),
    "resnet34": ("small_images",),
    "resnet50": ("small_images",),
}
TORCHVISION = "torchvision/"


def open_data(data: DataSection, split: str | None) -> ImageSource:
    """The images of a split of data.root."""
    return open_source(data.root, split, data.cache_directory)


def open_training_images(data: DataSection) -> ImageSource:
    """The run's own images: those of data.split or, where that is null, all but those of data.heldout_split."""
    return open_source(data.root, data.split, data.cache_directory, data.heldout_split)


def build_backbone(model: ModelSection, image_size: int, seed: int) -> Backbone:
    """The network at its initial weights, a function of the arguments alone.

    Raises:
        UsageError: an unknown name, or an image too small for the network.
    """
    factory = BACKBONES.get(model.name)
    if model.name.startswith(TORCHVISION):
        factory = partial(torchvision_backbone, name=model.name)
    if factory is None:
        raise UsageError(
            f"model.name={model.name!r} is unknown; known: {', '.join(BACKBONES)}, and any classification model of "
            f"torchvision as {TORCHVISION}NAME"
        )
    stem = Sobel() if model.sobel else nn.Identity()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights"))
            return factory(stem, 2 if model.sobel else 3, image_size, **_options(model))
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_numerics(train: TrainSection, device: torch.device) -> Numerics:
    """Where and in which precision the networks of a resolved config compute."""
    return Numerics(device, bfloat16=train.precision == "bf16", channels_last=bool(train.channels_last))


def _options(model: ModelSection) -> dict[str, Any]:
    taken = OPTIONS.get(model.name, ())
    for name in ("width", "small_images"):
        value, default = getattr(model, name), type(model).model_fields[name].default
        if name not in taken and value != default:
            able = ", ".join(network for network, names in OPTIONS.items() if name in names)
            raise UsageError(f"model.{name}={value} means nothing to model.name={model.name}: it is for {able}")
    return {name: getattr(model, name) for name in taken}
