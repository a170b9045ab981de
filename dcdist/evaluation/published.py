"""Figures that others published, for the column beside ours; each with the images that it was got on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

AS_REMEMBERED = "as remembered, not looked up again"


def title(row: Mapping[str, Any]) -> str:
    """The first cell of a published row."""
    return f"{row['name']}, on {row['data']}{'*' if row['note'] else ''}"


def footnotes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the stars of `title` mean; nothing where there is none."""
    return [f"* {note}" for note in dict.fromkeys(row["note"] for row in rows) if note]


def linear(network: str) -> list[dict[str, Any]]:
    """Top-1 accuracies of linear classifiers by layer, of networks of this name."""
    return [row for row in _all_linear() if row["network"] == network]


def knn(network: str) -> list[dict[str, Any]]:
    """Top-1 accuracies of weighted nearest neighbours by their number k, of networks of this name."""
    rows = [("DeepCluster-v2, 800 epochs", 0.671), ("SwAV, 800 epochs", 0.657)]
    return [
        {"network": "resnet50", "name": name, "data": "ImageNet", "top1": {"20": top1}, "note": AS_REMEMBERED}
        for name, top1 in rows
        if network == "resnet50"
    ]


def clusters(num_classes: int) -> list[dict[str, Any]]:
    """Scores of as many clusters as classes, on data of this number of classes; "part" says on which images.

    Of SCAN the best of ten runs after self-labelling, ACC by the best matching on the images that it is measured on.
    """
    return [row for row in _all_clusters() if row["num_classes"] == num_classes]


def _all_clusters() -> Iterator[dict[str, Any]]:
    scan = "SCAN (best of its runs)"
    for num_classes, data, before, after in (
        (10, "CIFAR-10", (0.816, 0.715, 0.665), (0.883, 0.797, 0.772)),
        (10, "STL-10", (0.792, None, None), (0.809, 0.698, 0.646)),
        (20, "CIFAR-20", (0.440, 0.449, 0.283), (0.507, 0.486, 0.333)),
        (50, "ImageNet-50", None, (0.768, None, None)),
        (100, "ImageNet-100", None, (0.689, None, None)),
        (200, "ImageNet-200", None, (0.581, None, None)),
        (1000, "ImageNet", None, (0.399, 0.720, 0.275)),
    ):
        for name, found in ((f"{scan}, before self-labelling", before), (scan, after)):
            if found is not None:
                scores = dict(zip(("by_best_naming", "nmi", "ari"), found, strict=True))
                yield {"name": name, "data": data, "num_classes": num_classes, "part": "heldout", **scores, "note": ""}
    student = {"name": "student project, AlexNet, 100 epochs", "num_classes": 2, "note": ""}
    yield {**student, "data": "CIFAR-10's cats and dogs", "part": "train", "purity": 0.655}
    yield {**student, "data": "91 of CIFAR-10's cats and dogs", "part": "heldout", "by_best_naming": 0.615}


def _all_linear() -> Iterator[dict[str, Any]]:
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
