"""Every method on a network of a few thousand weights, built as a config builds it, and microbatches to train it on."""

from __future__ import annotations

from typing import Any

import torch

from dcdist.build.methods import Samples, build_method
from dcdist.build.run import build_backbone
from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.config.schema import ExperimentConfig
from dcdist.data.loader import Batch
from dcdist.methods.base import Method

NUM_SAMPLES = 40
MICROBATCH_SIZE = 8
SIDE = 16
CPU = torch.device("cpu")

SMALL: dict[str, Any] = {
    "run": {"dir": "r"},
    "data": {"root": "d"},
    "model": {"name": "small_convnet", "width": 0.125},
    "views": {"image_size": SIDE, "resize": SIDE, "crops": []},
    "clustering": {"num_clusters": [5, 3]},
    "train": {"batch_size": 32, "microbatch_size": MICROBATCH_SIZE},
    "deepcluster_v2": {"hidden": 12, "dimensions": 6},
    "swav": {
        "num_prototypes": 7,
        "hidden": 12,
        "dimensions": 6,
        "queue_length": 48,
        "queue_from_epoch": 0,
        "frozen_prototype_steps": 1,
    },
    "simclr": {"hidden": 12, "dimensions": 6},
    "jigsaw": {
        "puzzle_size": 27,
        "tile_size": 8,
        "num_permutations": 6,
        "tile_features": 8,
        "hidden": 12,
        "pool": 1,
        "num_distractors": 2,
        "predict_distractors": True,
    },
    "scan": {"num_clusters": 4, "num_heads": 3},
    "selflabel": {"threshold": 0.25, "ema_decay": 0.5},
    "joint": {
        "parts": [
            {"name": "puzzle", "method": "jigsaw", "weight": 0.5},
            {"name": "clusters", "method": "deepcluster"},
            {"name": "contrast", "method": "simclr", "weight": 0.25},
        ]
    },
}
MULTI_CROP = {
    "crops": [{"count": 2, "image_size": SIDE, "scale": [0.5, 1]}, {"count": 1, "image_size": 8, "scale": [0.1, 0.5]}]
}

# Of each stream the sides of its views and the classes of its targets (of several heads a tuple); -8: 9 tiles of 8.
IMAGES, CROPS, TILES = (SIDE,), (SIDE, SIDE, 8), (-8,)
STREAMS: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...] | int]]] = {
    "deepcluster": {"clusters": (IMAGES, (5, 3))},
    "deepcluster_v2": {"clusters": (CROPS, (5, 3))},
    "swav": {"images": (CROPS, ())},
    "simclr": {"images": ((SIDE, SIDE), ())},
    "jigsaw": {"puzzles": (TILES, 6)},
    "scan": {"anchors": (IMAGES, ()), "neighbors": (IMAGES, ())},
    "selflabel": {"images": ((SIDE, SIDE), ())},
    "joint": {
        "puzzle/puzzles": (TILES, 6),
        "clusters/clusters": (IMAGES, (5, 3)),
        "contrast/images": ((SIDE, SIDE), ()),
    },
}


def small_method(name: str, own: range = range(NUM_SAMPLES), device: torch.device = CPU, **changes: Any) -> Method:
    """The method of this name, its clusters adopted where it takes any; the same at each call."""
    values = {**SMALL, "method": name}
    if name in ("swav", "deepcluster_v2"):
        values["views"] = {**values["views"], **MULTI_CROP}
    for section, keys in changes.items():
        values[section] = {**values[section], **keys}
    config = ExperimentConfig.model_validate(values)
    (stage,) = config.resolved_stages()
    backbone = build_backbone(config.model, SIDE, seed=3)
    method = build_method(stage, backbone, 3, Samples(NUM_SAMPLES, own, device))
    if name in ("deepcluster", "deepcluster_v2", "joint"):
        method.adopt(clustering((5, 3), 6), torch.Generator().manual_seed(4))
    return method


def clustering(num_clusters: tuple[int, ...], dimensions: int) -> Clustering:
    """Any partition of the samples, a head for each number of clusters."""
    ids, generator = torch.arange(NUM_SAMPLES), torch.Generator().manual_seed(1)
    heads = [
        HeadClustering(
            (ids % k).int(),
            torch.zeros(NUM_SAMPLES),
            torch.randn(k, dimensions, generator=generator),
            0.0,
            1,
            0,
            "rank0",
        )
        for k in num_clusters
    ]
    return Clustering(tuple(heads))


def microbatch(name: str, number: int) -> dict[str, Batch]:
    """Random images for each stream of a method; the number decides."""
    generator = torch.Generator().manual_seed(number)
    return {stream: _batch(*kind, generator) for stream, kind in STREAMS[name].items()}


def _batch(sides: tuple[int, ...], classes: tuple[int, ...] | int, generator: torch.Generator) -> Batch:
    shapes = [(MICROBATCH_SIZE, 3, side, side) if side > 0 else (MICROBATCH_SIZE, 9, 3, -side, -side) for side in sides]
    views = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    each = [
        torch.randint(k, (MICROBATCH_SIZE,), generator=generator)
        for k in ((classes,) if isinstance(classes, int) else classes)
    ]
    targets = None if not each else each[0] if isinstance(classes, int) else torch.stack(each, 1)
    sample_ids = torch.randperm(NUM_SAMPLES, generator=generator)[:MICROBATCH_SIZE]
    decoded = torch.ones(MICROBATCH_SIZE, dtype=torch.bool)
    return Batch(views, sample_ids, targets, decoded, int(sample_ids[0]), ())
