"""From a stage of the config to a stage that can run; everything below gets plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dcdist.build.clustering import build_clustering_step, build_readout
from dcdist.build.methods import Samples, build_method, clustering_stage, epoch_length, method_class
from dcdist.build.run import build_numerics
from dcdist.build.views import build_images
from dcdist.commits import Kind
from dcdist.config.schema import ExperimentConfig, StageConfig, TrainSection
from dcdist.data.loader import BatchLoader
from dcdist.data.source import ImageSource
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import derive_seed
from dcdist.engine.boundary import Boundary
from dcdist.engine.collapse import CollapseWatch
from dcdist.engine.heldout import HeldOut
from dcdist.engine.journal import Journal
from dcdist.engine.machines import Machines
from dcdist.engine.optim import Larc, Optimizer, Schedule
from dcdist.engine.pipeline import RunState, Stage, WriteClustering
from dcdist.engine.state import MethodState
from dcdist.engine.trainer import FeatureReduction, Trainer
from dcdist.engine.training_step import TrainingStep
from dcdist.features import contiguous_range
from dcdist.metrics.recorder import Recorder
from dcdist.models.backbone import Backbone


@dataclass(frozen=True)
class Surroundings:
    """What all stages of a run share."""

    config: ExperimentConfig
    source: ImageSource
    heldout_source: ImageSource | None
    backbone: Backbone
    devices: tuple[torch.device, ...]  # this process's own, then those of the machine's other processes
    loader: BatchLoader
    collectives: Collectives
    boundary: Boundary
    recorder: Recorder
    machines: Machines
    state: RunState
    save: Callable[[Mapping[str, Any], Kind], None]
    write_clustering: WriteClustering


def build_stage(shared: Surroundings, number: int) -> Stage:
    """The stage of this number with everything it needs."""
    stage = shared.config.resolved_stages()[number]
    train = stage.train
    assert isinstance(train.microbatch_size, int)
    seed = derive_seed(shared.config.run.seed, "stage", stage.name)
    num_samples, collectives = len(shared.source), shared.collectives
    own = contiguous_range(num_samples, collectives.rank, collectives.world_size)
    method = build_method(stage, shared.backbone, seed, Samples(num_samples, own, shared.devices[0]))
    numerics = build_numerics(train, shared.devices[0])
    numerics.place(method)
    num_microbatches = train.batch_size // train.microbatch_size
    steps_per_epoch = epoch_length(stage).num_steps(num_samples)
    optimizer = Optimizer(
        method.parameter_groups(),
        {parameter: name for name, parameter in method.named_parameters()},
        train.optimizer,
        train.momentum,
        train.weight_decay,
        _schedule(train, steps_per_epoch),
        Larc(train.larc_trust, train.larc_clip),
        train.plain_vectors,
    )
    images = build_images(stage, numerics, shared.loader)
    watch = CollapseWatch(method.chance_losses, method.remedy)
    journal = Journal(
        shared.recorder,
        shared.collectives,
        shared.state.progress,
        train.batch_size,
        num_microbatches,
        shared.config.metrics.every_num_steps,
        watch,
        shared.machines,
        stop_at_collapse=train.on_collapse == "stop",
    )
    states = {**shared.state.parts(), "method": MethodState(method), "optimizer": optimizer, "journal": journal}
    if method.bank is not None:
        states["bank"] = method.bank

    def save(kind: Kind) -> None:
        journal.flush()  # refuses a state whose loss is not finite
        shared.save(states, kind)

    recipe = build_readout(stage, shared.devices)
    heldout = None
    if shared.heldout_source is not None:
        split = str(shared.config.data.heldout_split)
        heldout = HeldOut(split, shared.heldout_source, images, shared.collectives)
    clustering_step, every_num_epochs = build_clustering_step(stage, shared.devices)
    trainer = Trainer(
        method=method,
        training_step=TrainingStep(method, optimizer, numerics, shared.collectives, num_microbatches),
        clustering_step=clustering_step,
        reduction=_reduction(clustering_stage(stage) or stage),
        source=shared.source,
        heldout=heldout,
        images=images,
        collectives=shared.collectives,
        boundary=shared.boundary,
        journal=journal,
        progress=shared.state.progress,
        adopted=shared.state.adopted,
        decodability=shared.state.decodability,
        save=save,
        write_clustering=lambda clustering, epoch: shared.write_clustering(stage.name, epoch, clustering),
        seed=seed,
        num_epochs=train.num_epochs,
        steps_per_epoch=steps_per_epoch,
        cluster_every_num_epochs=every_num_epochs,
        batch_size=train.batch_size,
        microbatch_size=train.microbatch_size,
        undecodable_is_fatal=shared.config.data.undecodable == "fail",
        least_usable=1 if method.classifies else recipe.least_rows,
    )
    return Stage(stage.name, trainer, recipe, states)


def _reduction(stage: StageConfig) -> FeatureReduction:
    """Of features; embeddings are clustered as they are."""
    features = stage.features
    dimensions = None if method_class(stage).clusters_embeddings else features.pca_dimensions
    return FeatureReduction(dimensions, features.whiten, features.epsilon)


def _schedule(train: TrainSection, steps_per_epoch: int) -> Schedule:
    return Schedule(
        train.learning_rate,
        train.schedule,
        train.warmup_steps,
        train.num_epochs * steps_per_epoch,
        train.warmup_ratio,
        train.final_ratio,
        tuple(epoch * steps_per_epoch for epoch in train.decay_epochs),
    )
