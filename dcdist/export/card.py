"""The card of an exported network: all that is needed to use it, and where it is from; docs/export.md describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from torch import nn

from dcdist.build.run import OPTIONS
from dcdist.build.views import evaluation_view
from dcdist.config.schema import StageConfig
from dcdist.data.augment import FLAT
from dcdist.export.scores import read_scores
from dcdist.models.backbone import Backbone
from dcdist.models.counterparts import Counterpart, timm_counterpart, torchvision_counterpart
from dcdist.models.sobel import HORIZONTAL, VERTICAL, Sobel
from dcdist.stored_run import StoredRun

FORMAT = 1  # grows where the meaning of an entry changes


def describe_run(run: StoredRun) -> dict[str, Any]:
    """The card, JSON values; a function of the run's folder alone."""
    return {
        "format": FORMAT,
        "dcdist": metadata.version("dcdist"),
        "architecture": _architecture(run),
        "stem": _stem(run.backbone),
        "features": {
            "dimension": run.backbone.num_features,
            "before_relu": run.backbone.features_before_relu,
            "pooling": pooling(run.backbone),
        },
        "normalization": _normalization(run.stage),
        "training_set": _training_set(run),
        "training": _training(run),
        "clusters": run.readout and run.readout.num_clusters,
        "scores": read_scores(run),
        "license": None,  # of the weights: nobody has said
    }


def _architecture(run: StoredRun) -> dict[str, Any]:
    model, backbone, image_size = run.config.model, run.backbone, run.config.views.image_size
    torchvision = torchvision_counterpart(model.name, backbone, image_size)
    return {
        "name": model.name,
        "options": {name: getattr(model, name) for name in OPTIONS.get(model.name, ())},
        "image_size": image_size,
        "num_parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "torchvision": _counterpart(torchvision),
        "timm": _counterpart(timm_counterpart(model.name, backbone)),
    }


def _counterpart(counterpart: Counterpart | None) -> Mapping[str, Any] | None:
    return None if counterpart is None else asdict(counterpart)


def _stem(backbone: Backbone) -> dict[str, Any] | None:
    if not isinstance(backbone.stem, Sobel):
        return None
    return {"name": "sobel", "colors": "mean", "filters": [HORIZONTAL, VERTICAL], "padding": 1}


def pooling(backbone: Backbone) -> str:
    """How the last map becomes a row."""
    if any(isinstance(stage, nn.Unflatten) for stage in backbone.body.children()):
        return "class token"
    first = next(backbone.top.children())
    if not isinstance(first, nn.AdaptiveAvgPool2d):
        return "none"
    size = first.output_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return "average" if height == width == 1 else f"average to {height} x {width}"


def _normalization(stage: StageConfig) -> dict[str, Any]:
    """From decoded pixels to what the network, or its stem, takes."""
    view = evaluation_view(stage.views)
    how = view.normalization
    return {
        "resize": view.resize,
        "crop": view.crop,
        "image_size": view.size,
        "interpolation": "bilinear, antialiased",
        "scale": "0..1",
        "standardize": how.standardize,
        "mean": None if how.standardize else how.mean,
        "std": None if how.standardize else how.std,
        "added_to_deviation": FLAT if how.standardize else None,
    }


def _training_set(run: StoredRun) -> dict[str, Any]:
    data = run.config.data
    found = run.directory.read_attempt(run.checkpoint.attempt).get("data") or {}
    return {
        "root": data.root,
        "split": data.split,
        "heldout_split": data.heldout_split,
        "num_images": found.get("num_images"),
        "fingerprint": found.get("fingerprint"),
    }


def _training(run: StoredRun) -> dict[str, Any]:
    stages = run.config.resolved_stages()
    names = [stage.name for stage in stages]
    begun = stages[: names.index(run.stage.name) + 1]
    return {
        "method": run.stage.method,
        "stages": [
            {"name": stage.name, "method": stage.method, "num_epochs": stage.train.num_epochs} for stage in begun
        ],
        "seed": run.config.run.seed,
        "checkpoint": str(run.checkpoint),
        **{name: run.position[name] for name in ("stage", "epoch", "step", "stage_done")},
    }
