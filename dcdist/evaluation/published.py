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


def linear(network: str, preset: str) -> list[dict[str, Any]]:
    """Top-1 accuracies of linear classifiers by layer, of networks of this name trained much as this preset does."""
    return [row for row in _all_linear() if row["network"] == network and row["preset"] == preset]


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
    scan = "SCAN"
    for num_classes, data, before, after in (
        (10, "CIFAR-10", (0.816, 0.715, 0.665), (0.883, 0.797, 0.772)),
        (10, "STL-10", (0.792, None, None), (0.809, 0.698, 0.646)),
        (20, "CIFAR-20", (0.440, 0.449, 0.283), (0.507, 0.486, 0.333)),
        (50, "ImageNet-50", None, (0.768, None, None)),
        (100, "ImageNet-100", None, (0.689, None, None)),
        (200, "ImageNet-200", None, (0.581, None, None)),
        (1000, "ImageNet", None, (0.399, 0.720, 0.275)),
    ):
        for name, found in ((f"{scan} before self-labelling", before), (scan, after)):
            if found is not None:
                scores = dict(zip(("by_best_naming", "nmi", "ari"), found, strict=True))
                yield {"name": name, "data": data, "num_classes": num_classes, "part": "heldout", **scores, "note": ""}
    student = {"name": "student project, AlexNet, 100 epochs", "num_classes": 2, "note": ""}
    yield {**student, "data": "CIFAR-10's cats and dogs", "part": "train", "purity": 0.655}
    yield {**student, "data": "91 of CIFAR-10's cats and dogs", "part": "heldout", "by_best_naming": 0.615}


def _all_linear() -> Iterator[dict[str, Any]]:
    convolutions = tuple(f"conv{number}" for number in range(1, 6))
    for name, data, top1 in (
        ("first version", "ImageNet", (0.134, 0.323, 0.410, 0.396, 0.382)),
        ("second version", "ImageNet", (0.129, 0.292, 0.382, 0.398, 0.361)),
        ("first version", "Places205", (0.196, 0.332, 0.392, 0.398, 0.347)),
        ("second version", "Places205", (0.186, 0.308, 0.370, 0.375, 0.331)),
    ):
        by_layer = dict(zip(convolutions, top1, strict=True))
        yield _row("deepcluster", "alexnet", f"DeepCluster, {name}", data, by_layer, AS_REMEMBERED)
    blocks = ("stem", "layer1", "layer2", "layer3", "layer4", "output")
    for name, by_block in (
        ("DeepCluster with Sobel (mmselfsup)", (0.128, 0.308, 0.439, 0.577, 0.517, 0.469)),
        ("ODC (mmselfsup)", (0.148, 0.318, 0.424, 0.558, 0.577, 0.534)),
    ):
        yield _row("goyal-imagenet", "resnet50", name, "ImageNet", dict(zip(blocks, by_block, strict=True)))
    jigsaw = "jigsaw, 100 permutations (Goyal et al.), best layer"
    yield _row("goyal-imagenet", "resnet50", jigsaw, "ImageNet", {"layer3": 0.486})
    for network, data, name, accuracy in (
        ("resnet50", "ImageNet", "SwAV, 200 epochs", 0.739),
        ("resnet50", "ImageNet", "SwAV, 800 epochs", 0.753),
        ("resnet50", "ImageNet", "DeepCluster-v2, 400 epochs", 0.743),
        ("resnet50", "ImageNet", "DeepCluster-v2, 800 epochs", 0.752),
        ("resnet18", "CIFAR-10", "DeepCluster-v2, 1000 epochs (solo-learn)", 0.889),
        ("resnet18", "CIFAR-10", "SwAV, 1000 epochs (solo-learn)", 0.892),
    ):
        yield _row("swav", network, name, data, {"output": accuracy})


def _row(preset: str, network: str, name: str, data: str, top1: Mapping[str, float], note: str = "") -> dict[str, Any]:
    return {"preset": preset, "network": network, "name": name, "data": data, "top1": dict(top1), "note": note}
