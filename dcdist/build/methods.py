"""From a stage of the config to its method, by an explicit table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dcdist.build.views import crop_views, evaluation_view, puzzle_view, training_view
from dcdist.clustering.bank import FeatureBank
from dcdist.config.schema import StageConfig
from dcdist.data.permutations import permutation_set
from dcdist.data.tiles import NUM_TILES, NUM_TURNS
from dcdist.distributed.seeding import derive_seed
from dcdist.errors import UsageError
from dcdist.methods.base import EpochLength, Method
from dcdist.methods.deepcluster import DeepCluster
from dcdist.methods.deepcluster_v2 import NUM_BANK_VIEWS, DeepClusterV2
from dcdist.methods.jigsaw import Jigsaw
from dcdist.methods.joint import Joint
from dcdist.methods.scan import Scan
from dcdist.methods.selflabel import SelfLabel
from dcdist.methods.simclr import Simclr
from dcdist.methods.swav import Swav
from dcdist.models.backbone import Backbone
from dcdist.models.projection import Projector
from dcdist.models.puzzle_head import PuzzleHead


@dataclass(frozen=True)
class Samples:
    """What a method must know of the data and of this process."""

    num_samples: int
    own: range  # the sample ids whose rows this rank keeps
    device: torch.device


def build_method(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:
    """The stage's method on the backbone; its own layers at initial weights that derive from the stage's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return METHODS[stage.method][1](stage, backbone, seed, samples)


def method_class(stage: StageConfig) -> type[Method]:
    """What says of itself what it takes and leaves, before it is built."""
    return METHODS[stage.method][0]


def clustering_stage(stage: StageConfig) -> StageConfig | None:
    """The stage, or the part of a joint one, whose method takes clusters or neighbours; None where none does."""
    return next((part for part in stage.parts() if method_class(part).takes), None)


def epoch_length(stage: StageConfig) -> EpochLength:
    """How long an epoch of the stage is."""
    return EpochLength(stage.train.batch_size, stage.train.steps_per_epoch)


def _projector(backbone: Backbone, hidden: int | None, dimensions: int) -> Projector:
    return Projector(backbone.num_features, hidden, dimensions, backbone.features_before_relu)


def _deepcluster(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:  # noqa: ARG001
    return DeepCluster(
        backbone=backbone,
        num_clusters=stage.clustering.counts,
        view=training_view(stage.views),
        seed=seed,
        length=epoch_length(stage),
        sampler=stage.deepcluster.sampler,
        head_learning_rate_scale=stage.deepcluster.head_learning_rate_scale,
        head_momentum=stage.deepcluster.head_momentum,
    )


def _deepcluster_v2(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:
    section = stage.deepcluster_v2
    return DeepClusterV2(
        backbone=backbone,
        projector=_projector(backbone, section.hidden, section.dimensions),
        num_clusters=stage.clustering.counts,
        views=crop_views(stage.views),
        seed=seed,
        length=epoch_length(stage),
        temperature=section.temperature,
        bank=FeatureBank(samples.own, NUM_BANK_VIEWS, section.dimensions, samples.device) if section.bank else None,
    )


def _swav(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:
    section, length = stage.swav, epoch_length(stage)
    return Swav(
        backbone=backbone,
        projector=_projector(backbone, section.hidden, section.dimensions),
        num_prototypes=section.num_prototypes,
        views=crop_views(stage.views),
        seed=seed,
        length=length,
        temperature=section.temperature,
        epsilon=section.epsilon,
        sinkhorn_iterations=section.sinkhorn_iterations,
        queue_length=section.queue_length,
        queue_from_step=section.queue_from_epoch * length.num_steps(samples.num_samples),
        frozen_prototype_steps=section.frozen_prototype_steps,
    )


def _simclr(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:  # noqa: ARG001
    section = stage.simclr
    return Simclr(
        backbone=backbone,
        projector=_projector(backbone, section.hidden, section.dimensions),
        views=crop_views(stage.views),
        seed=seed,
        length=epoch_length(stage),
        temperature=section.temperature,
    )


def _jigsaw(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:  # noqa: ARG001
    section = stage.jigsaw
    head = PuzzleHead(
        num_channels=backbone.num_channels,
        num_tiles=NUM_TILES,
        pool=section.pool,
        tile_features=section.tile_features,
        hidden=section.hidden,
        dropout=section.dropout,
        num_classes=section.num_permutations * (NUM_TURNS if section.rotation else 1),
        predicts_distractors=section.predict_distractors,
    )
    try:
        return Jigsaw(
            backbone=backbone,
            head=head,
            permutations=permutation_set(section.num_permutations, seed, NUM_TILES, section.permutation_distance),
            view=puzzle_view(stage.views, section),
            seed=seed,
            length=epoch_length(stage),
            rotation=section.rotation,
            num_distractors=section.num_distractors,
        )
    except ValueError as error:
        raise UsageError(f"stage {stage.name}: {error}") from error


def _scan(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:  # noqa: ARG001
    section = stage.scan
    return Scan(
        backbone=backbone,
        num_classes=section.num_clusters,
        num_heads=section.num_heads,
        entropy_weight=section.entropy_weight,
        train_backbone=section.train_backbone,
        initial=section.initial,
        view=training_view(stage.views),
        seed=seed,
        length=epoch_length(stage),
    )


def _selflabel(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:  # noqa: ARG001
    section = stage.selflabel
    return SelfLabel(
        backbone=backbone,
        num_classes=stage.scan.num_clusters,
        threshold=section.threshold,
        class_balancing=section.class_balancing,
        ema_decay=section.ema_decay,
        weak=evaluation_view(stage.views),
        strong=training_view(stage.views),
        seed=seed,
        length=epoch_length(stage),
    )


def _joint(stage: StageConfig, backbone: Backbone, seed: int, samples: Samples) -> Method:
    parts = stage.resolved_parts()
    methods = {
        part.name: METHODS[part.method][1](part, backbone, derive_seed(seed, "part", part.name), samples)
        for part, _ in parts
    }
    seeing = next((part for part, _ in parts if method_class(part).sees_images), parts[0][0])
    leading = clustering_stage(stage) or seeing
    return Joint(backbone, methods, {part.name: weight for part, weight in parts}, leading.name)


METHODS: dict[str, tuple[type[Method], Callable[[StageConfig, Backbone, int, Samples], Method]]] = {
    "deepcluster": (DeepCluster, _deepcluster),
    "deepcluster_v2": (DeepClusterV2, _deepcluster_v2),
    "swav": (Swav, _swav),
    "simclr": (Simclr, _simclr),
    "jigsaw": (Jigsaw, _jigsaw),
    "joint": (Joint, _joint),
    "scan": (Scan, _scan),
    "selflabel": (SelfLabel, _selflabel),
}
