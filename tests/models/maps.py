"""The maps of a backbone's stages, as a linear probe takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dcdist.models.backbone import Backbone


@torch.no_grad()
def maps_of(network: Backbone, names: Sequence[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the stages with these names give for the images, looked at after the whole network has run."""
    maps: dict[str, torch.Tensor] = {}
    hooks = [
        network.body.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: maps.update({name: output})
        )
        for name in names
    ]
    network.maps(images)
    for hook in hooks:
        hook.remove()
    return maps
