"""From a stage of the config to one that runs: what each stage has for itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcdist.build.run import build_backbone
from dcdist.build.stage import build_stage
from dcdist.config.schema import ExperimentConfig
from dcdist.distributed.collectives import Collectives
from dcdist.engine.pipeline import RunState
from dcdist.methods.joint import Joint
from tests.methods.small_methods import SMALL


def surroundings(**sections: Any) -> Any:
    config = ExperimentConfig.model_validate({**SMALL, **sections})
    return SimpleNamespace(
        config=config,
        source=range(100),
        heldout_source=None,
        backbone=build_backbone(config.model, config.views.image_size, 0),
        devices=(torch.device("cpu"),),
        loader=None,
        collectives=Collectives(),
        boundary=None,
        recorder=None,
        machines=None,
        state=RunState(),
    )


def test_each_stage_computes_in_its_own_precision_and_layout() -> None:
    train = {**SMALL["train"], "precision": "bf16", "channels_last": True}
    later = {"precision": "fp32", "channels_last": False}
    stages = [{"name": "first", "method": "simclr"}, {"name": "second", "method": "scan", "train": later}]
    shared = surroundings(train=train, stages=stages)
    (weight,) = (p for name, p in shared.backbone.named_parameters() if name == "body.conv2.0.weight")
    for number, expected in enumerate((True, False)):
        numerics = build_stage(shared, number).trainer.images.numerics
        assert (numerics.bfloat16, numerics.channels_last) == (expected, expected)
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
        assert weight.is_contiguous() != expected


def test_each_part_of_a_joint_method_normalises_in_its_own_way() -> None:
    parts = [
        {"name": "one", "method": "simclr", "views": {"standardize": True}},
        {"name": "other", "method": "simclr", "views": {"mean": [0.1, 0.2, 0.3]}},
    ]
    shared = surroundings(stages=[{"name": "main", "method": "joint", "joint": {"parts": parts}}])
    trainer = build_stage(shared, 0).trainer
    streams = trainer.method.plan_epoch(0, torch.arange(100).numpy(), None).streams
    of_one, of_other = (
        next(stream.views[0].normalization for key, stream in streams.items() if key.startswith(f"{name}/"))
        for name in ("one", "other")
    )
    assert (of_one.standardize, of_other.standardize) == (True, False)
    assert tuple(of_other.mean) == (0.1, 0.2, 0.3)


def test_embeddings_are_clustered_as_they_are() -> None:
    """Without a bank, too: only features are reduced."""
    features = {"pca_dimensions": 8}
    for method, expected in (("deepcluster", 8), ("deepcluster_v2", None)):
        stages = [{"name": "main", "method": method, "deepcluster_v2": {**SMALL["deepcluster_v2"], "bank": False}}]
        reduction = build_stage(surroundings(features=features, stages=stages), 0).trainer.reduction
        assert reduction.pca_dimensions == expected


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_a_joint_method_without_clusters_a_part_that_sees_images_leads(order: tuple[int, int]) -> None:
    """Its running statistics are those of evaluation."""
    both = [{"name": "puzzle", "method": "jigsaw"}, {"name": "contrast", "method": "simclr"}]
    joint = {"parts": [both[number] for number in order]}
    method = build_stage(surroundings(stages=[{"name": "main", "method": "joint", "joint": joint}]), 0).trainer.method
    assert isinstance(method, Joint)
    assert method.leading == "contrast"
