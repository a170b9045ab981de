"""Networks of torchvision as its own code builds them, up to the last linear layer."""

from __future__ import annotations

import torch
from torch import nn

# What torchvision's builders need beside the name, and beside `image_size` for vision transformers.
OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def reference(name: str, size: int, seed: int, **options: object) -> nn.Module:
    """A whole network at the initial weights of this seed."""
    from torchvision.models import get_model

    if name.startswith("vit_"):
        options["image_size"] = size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_model(name, weights=None, **{**OPTIONS.get(name, {}), **options})


def without_last_layer(network: nn.Module) -> nn.Module:
    """The network, changed in place to give what it gave to its last linear layer."""
    if type(network).__name__ == "SqueezeNet":
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), network.classifier[0])
        return network
    name = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    return network
