"""Initial weights of a backbone: from a file or another run, all of them or none.

What a file calls a tensor is translated to the backbone's name for it; whatever does not match is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import torch

from dcdist.errors import UsageError
from dcdist.models.backbone import Backbone
from dcdist.models.published_names import numbered_layers
from dcdist.models.weight_files import Weights, read_weights

# Where torchvision's names are found in a backbone: as they are, in a ResNet's stem, or in a vision transformer.
PLACES = ("", "body.", "body.stem.", "body.transformer.", "top.")
# What comes after the features in published files, and the stem that has no parameters here.
HEADS = re.compile(r"(fc|classifier|heads?|top_layer|sobel|aux1|aux2|AuxLogits|\w*(project|predict|prototype)\w*)\.")
# Older names of the layers in a DenseNet's blocks, in the files that torchvision publishes: norm.1 for norm1.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
OF_A_BACKBONE = re.compile(r"(.*\.)?backbone\.")
# Inputs of the first convolution, in the file and in the network.
EDGES_FOR_COLOURS, COLOURS_FOR_EDGES = (2, 3), (3, 2)
SHOWN = 6


def load_initial_weights(backbone: Backbone, path: str) -> str:
    """Copies weights into a backbone, in place; where anything does not match, the backbone stays as it was.

    Args:
        backbone: the network; precision and device stay its own.
        path: a file (.safetensors, or .pt, .pth, .pth.tar that hold nothing but tensors and plain values) of a
            backbone's state, of torchvision's network of the same architecture, or as published with DeepCluster; or
            the folder of a run, whose newest whole checkpoint is taken. Local or a URL.

    Returns:
        One line for the log: how many tensors, from where, and what was left out (heads, classifiers).

    Raises:
        UsageError: no such weights, or tensors are missing, unexpected or of another shape; names them.
        RunError: the run has checkpoints, and none of them is whole.
    """
    weights = read_weights(path)
    tensors, left_out = _of_backbone(weights)
    names = _Names(backbone)
    expected = backbone.state_dict()
    found: dict[str, torch.Tensor] = {}
    unexpected = []
    for key, tensor in tensors.items():
        name = names.of(key)
        if name is not None and name not in found:
            found[name] = tensor
        elif name is None and HEADS.match(key):
            left_out.append(key)
        else:
            unexpected.append(key)
    # A counter that files of torch before 0.4.1 lack, and that nothing here reads.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    differing = [name for name in found if found[name].shape != expected[name].shape]
    if missing or unexpected or differing:
        shapes = [f"{key} {list(found[key].shape)} for {list(expected[key].shape)}" for key in differing]
        lists = {"missing in the file": missing, "unknown to the network": unexpected, "of other shapes": shapes}
        problems = "; ".join(f"{what}: {_listed(keys)}" for what, keys in lists.items() if keys)
        inputs = {(found[key].shape[1], expected[key].shape[1]) for key in differing if found[key].ndim == 4}
        raise UsageError(f"the weights of {weights.source} do not fit the network: {problems}. {_remedy(inputs)}")
    backbone.load_state_dict(found, strict=False)
    return f"initial weights: {len(found)} tensors of {weights.source}{_summary(left_out)}"


def _of_backbone(weights: Weights) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The backbone's tensors, and the names of the rest.

    A method calls its backbone so; where only parts of a method have one, these must be one and the same.
    """
    backbones: dict[str, dict[str, torch.Tensor]] = {}
    rest: dict[str, torch.Tensor] = {}
    for key, tensor in weights.tensors.items():
        name = _as_today(key)
        match = OF_A_BACKBONE.match(name)
        group = backbones.setdefault(match[0], {}) if match else rest
        group[name.removeprefix(match[0]) if match else name] = tensor
    if not backbones:
        return rest, []
    prefixes = sorted(backbones, key=len)
    chosen = backbones[prefixes[0]]
    if prefixes[0] != "backbone." and not all(_equal(chosen, backbones[prefix]) for prefix in prefixes):
        raise UsageError(
            f"{weights.source} holds several backbones that differ: {', '.join(prefixes)}; save the state of the one "
            "to start from as a .safetensors file"
        )
    return chosen, [*rest, *(prefix + name for prefix in prefixes[1:] for name in backbones[prefix])]


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _as_today(key: str) -> str:
    """A name without what wrappers for parallel training add, and as torchvision writes it today."""
    return OLD_DENSENET.sub(r"\1\2.", re.sub(r"(^|\.)module\.", r"\1", key))


class _Names:
    """From the names of published files to those of a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self._own = backbone.state_dict().keys()
        self._numbered = numbered_layers(backbone)

    def of(self, key: str) -> str | None:
        """The backbone's name for what a file calls so, None where there is no such tensor."""
        layer, _, kind = key.rpartition(".")
        candidates = [f"{place}{key}" for place in PLACES] + [f"{self._numbered.get(layer)}.{kind}"]
        return next((name for name in candidates if name in self._own), None)


def _remedy(inputs: Collection[tuple[int, int]]) -> str:
    if EDGES_FOR_COLOURS in inputs:
        return "The file's network sees edges: set model.sobel=true"
    if COLOURS_FOR_EDGES in inputs:
        return "The file's network sees colours: set model.sobel=false"
    return "Build the network that the file is of, by the keys of `model` and by views.image_size"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _summary(left_out: Iterable[str]) -> str:
    counts = Counter(key.split(".")[0] for key in left_out)
    return "; left out: " + ", ".join(f"{name} ({count})" for name, count in counts.items()) if counts else ""
