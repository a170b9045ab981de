"""Figures that others published, for the column beside ours; each with the images that it was got on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AS_REMEMBERED = "as remembered, not looked up again"


def published_linear(network: str) -> list[dict[str, Any]]:
    """Top-1 accuracies of linear classifiers by layer, of networks of this name."""
    return [row for row in _rows() if row["network"] == network]


def _rows() -> Iterator[dict[str, Any]]:
    convolutions = [f"conv{number}" for number in range(1, 6)]
    yield from (
        _row("alexnet", "DeepCluster, first version", "ImageNet", convolutions, (13.4, 32.3, 41.0, 39.6, 38.2)),
        _row("alexnet", "DeepCluster, second version", "ImageNet", convolutions, (12.9, 29.2, 38.2, 39.8, 36.1)),
        _row("alexnet", "DeepCluster, first version", "Places205", convolutions, (19.6, 33.2, 39.2, 39.8, 34.7)),
        _row("alexnet", "DeepCluster, second version", "Places205", convolutions, (18.6, 30.8, 37.0, 37.5, 33.1)),
    )
    blocks = ["stem", "layer1", "layer2", "layer3", "layer4", "output"]
    yield from (
        _row(
            "resnet50",
            "DeepCluster with Sobel (mmselfsup)",
            "ImageNet",
            blocks,
            (12.8, 30.8, 43.9, 57.7, 51.7, 46.9),
            "",
        ),
        _row("resnet50", "ODC (mmselfsup)", "ImageNet", blocks, (14.8, 31.8, 42.4, 55.8, 57.7, 53.4), ""),
        _row("resnet50", "SwAV, 200 epochs", "ImageNet", ["output"], (73.9,), ""),
        _row("resnet50", "SwAV, 800 epochs", "ImageNet", ["output"], (75.3,), ""),
        _row("resnet50", "DeepCluster-v2, 400 epochs", "ImageNet", ["output"], (74.3,), ""),
        _row("resnet50", "DeepCluster-v2, 800 epochs", "ImageNet", ["output"], (75.2,), ""),
        _row("resnet50", "jigsaw, 100 permutations (Goyal et al.), best layer", "ImageNet", ["layer3"], (48.6,), ""),
        _row("resnet18", "DeepCluster-v2, 1000 epochs (solo-learn)", "CIFAR-10", ["output"], (88.9,), ""),
        _row("resnet18", "SwAV, 1000 epochs (solo-learn)", "CIFAR-10", ["output"], (89.2,), ""),
    )


def _row(
    network: str, name: str, data: str, layers: list[str], percent: tuple[float, ...], note: str = AS_REMEMBERED
) -> dict[str, Any]:
    top1 = {layer: round(value / 100, 4) for layer, value in zip(layers, percent, strict=True)}
    return {"network": network, "name": name, "data": data, "top1": top1, "note": note}
