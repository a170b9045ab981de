"""From a resolved config to objects, by explicit tables; everything below gets plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from rich.console import Console
from torch import nn

from dcdist.clustering.kmeans import KMeans
from dcdist.commits import Kind
from dcdist.config.schema import (
    ClusteringSection,
    DataSection,
    ExperimentConfig,
    ModelSection,
    StageConfig,
    ViewsSection,
)
from dcdist.data.augment import BatchAugmentation
from dcdist.data.loader import BatchLoader
from dcdist.data.preparation import Preparation
from dcdist.data.source import ImageSource, open_source
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import derive_seed
from dcdist.engine.boundary import Boundary
from dcdist.engine.heldout import HeldOut
from dcdist.engine.journal import Journal
from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.pipeline import RunState, Stage, WriteAssignments
from dcdist.engine.readout import ReadoutRecipe
from dcdist.engine.trainer import FeatureReduction, Trainer
from dcdist.engine.training_step import TrainingStep
from dcdist.errors import UsageError
from dcdist.features import ImagePass
from dcdist.methods.base import Method
from dcdist.methods.deepcluster import DeepCluster
from dcdist.metrics.heartbeat import Heartbeat
from dcdist.metrics.jsonl import JsonLinesSink
from dcdist.metrics.progress import progress_sink
from dcdist.metrics.prometheus import PrometheusSink
from dcdist.metrics.recorder import Recorder, Sink
from dcdist.metrics.tensorboard import TensorBoardSink
from dcdist.models.alexnet import alexnet
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics
from dcdist.models.small import small_convnet, small_resnet
from dcdist.models.sobel import Sobel
from dcdist.models.vgg import vgg16
from dcdist.run_directory import TENSORBOARD, RunDirectory
from dcdist.storage import GrowingFile

GIB = 2**30

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "small_convnet": small_convnet,
    "small_resnet": small_resnet,
}
WITH_WIDTH = {"small_convnet", "small_resnet"}


def open_data(data: DataSection, split: str | None) -> ImageSource:
    """The images of a split of data.root."""
    return open_source(data.root, split, data.cache_directory)


def build_backbone(model: ModelSection, image_size: int, seed: int) -> Backbone:
    """The network at its initial weights, a function of the arguments alone.

    Raises:
        UsageError: an unknown name, or an image too small for the network.
    """
    if model.name not in BACKBONES:
        raise UsageError(f"model.name={model.name!r} is unknown; known: {', '.join(BACKBONES)}")
    options: dict[str, Any] = {"width": model.width} if model.name in WITH_WIDTH else {}
    stem = Sobel() if model.sobel else nn.Identity()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights"))
            return BACKBONES[model.name](stem, 2 if model.sobel else 3, image_size, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error


def training_view(views: ViewsSection) -> View:
    return View(
        size=views.image_size,
        crop=views.crop,
        resize=views.resize,
        scale=views.scale,
        ratio=views.ratio,
        horizontal_flip=views.horizontal_flip,
    )


def evaluation_view(views: ViewsSection) -> View:
    return View(size=views.image_size, crop="center", resize=views.resize, horizontal_flip=False)


def build_preparation(views: ViewsSection) -> Preparation:
    augmentation = BatchAugmentation(
        rotation_degrees=views.rotation_degrees,
        shear=views.shear,
        translate=views.translate,
        scale=views.zoom,
        elastic_sigma=views.elastic_sigma,
        brightness=views.brightness,
        contrast=views.contrast,
        saturation=views.saturation,
        hue=views.hue,
        jitter_probability=views.jitter_probability,
        grayscale_probability=views.grayscale_probability,
    )
    return Preparation(views.mean, views.std, augmentation)


def build_images(stage: StageConfig, numerics: Numerics, loader: BatchLoader) -> ImagePass:
    return ImagePass(
        view=evaluation_view(stage.views),
        preparation=build_preparation(stage.views),
        numerics=numerics,
        batch_size=stage.features.batch_size,
        loader=loader,
        memory_limit_bytes=int(stage.features.memory_limit_gib * GIB),
    )


def build_kmeans(clustering: ClusteringSection, num_clusters: int, devices: tuple[torch.device, ...]) -> KMeans:
    return KMeans(
        num_clusters=num_clusters,
        num_iterations=clustering.num_iterations,
        placement=clustering.placement,
        gather_limit_gib=clustering.gather_limit_gib,
        spherical=clustering.spherical,
        engine=clustering.engine,
        devices=devices,
    )


def build_deepcluster(stage: StageConfig, backbone: Backbone, seed: int) -> Method:
    return DeepCluster(
        backbone=backbone,
        num_clusters=stage.clustering.num_clusters,
        view=training_view(stage.views),
        seed=seed,
        batch_size=stage.train.batch_size,
        steps_per_epoch=stage.train.steps_per_epoch,
        sampler=stage.deepcluster.sampler,
        head_learning_rate_scale=stage.deepcluster.head_learning_rate_scale,
        head_momentum=stage.deepcluster.head_momentum,
    )


def build_recorder(config: ExperimentConfig, run_directory: RunDirectory, attempt: int, started_at: float) -> Recorder:
    """Rank 0's recorder: metrics/NNNN.jsonl, the heartbeat, and the sinks that the config asks for."""
    metrics, storage = config.metrics, run_directory.storage
    heartbeat = Heartbeat(storage, run_directory.heartbeat_file(attempt))
    sinks: list[Sink] = [JsonLinesSink(GrowingFile(storage, run_directory.metrics_file(attempt))), heartbeat]
    if metrics.tensorboard:
        sinks.append(TensorBoardSink(storage, TENSORBOARD, attempt))
    if metrics.prometheus_port is not None:
        methods = {stage.name: stage.method for stage in config.resolved_stages()}
        version = metadata.version("dcdist")
        sinks.append(
            PrometheusSink(metrics.prometheus_port, metrics.prometheus_address, str(run_directory), methods, version)
        )
    if metrics.progress:
        sinks.append(progress_sink(Console(stderr=True)))
    return Recorder(sinks, heartbeat, started_at)


METHODS: dict[str, Callable[[StageConfig, Backbone, int], Method]] = {"deepcluster": build_deepcluster}


def check_fits(stage: StageConfig, num_samples: int, num_features: int, world_size: int) -> None:
    """Refuses what cannot work before anything is started.

    Raises:
        UsageError: K, PCA dimensions or the number of processes do not fit; names the key and the remedy.
    """
    train, clustering, dimensions = stage.train, stage.clustering, stage.features.pca_dimensions
    assert isinstance(train.microbatch_size, int)
    num_microbatches = train.batch_size // train.microbatch_size
    if clustering.num_clusters > num_samples:
        raise UsageError(
            f"clustering.num_clusters={clustering.num_clusters} needs at least as many images, "
            f"data.root has {num_samples}: set clustering.num_clusters to at most {num_samples}; "
            "small data does well with 3 to 10 times its classes"
        )
    if dimensions is not None and dimensions > min(num_samples, num_features):
        raise UsageError(
            f"features.pca_dimensions={dimensions} needs at least as many images ({num_samples}) and features "
            f"({num_features}): set features.pca_dimensions to at most {min(num_samples, num_features)}, or to null"
        )
    if world_size > num_microbatches:
        raise UsageError(
            f"{world_size} processes cannot share a step of {num_microbatches} microbatches "
            f"(train.batch_size={train.batch_size} / train.microbatch_size={train.microbatch_size}): "
            f"use at most {num_microbatches} processes, or a smaller train.microbatch_size"
        )


@dataclass(frozen=True)
class Surroundings:
    """What all stages of a run share."""

    config: ExperimentConfig
    source: ImageSource
    heldout_source: ImageSource | None
    backbone: Backbone
    numerics: Numerics
    devices: tuple[torch.device, ...]  # this process's own, then those of the machine's other processes
    loader: BatchLoader
    collectives: Collectives
    boundary: Boundary
    recorder: Recorder
    state: RunState
    save: Callable[[Mapping[str, Any], Kind], None]
    write_assignments: WriteAssignments


def build_stage(shared: Surroundings, number: int) -> Stage:
    """The stage of this number with everything it needs."""
    stage = shared.config.resolved_stages()[number]
    train = stage.train
    assert isinstance(train.microbatch_size, int)
    seed = derive_seed(shared.config.run.seed, "stage", stage.name)
    method = METHODS[stage.method](stage, shared.backbone, seed)
    shared.numerics.place(method)
    num_microbatches = train.batch_size // train.microbatch_size
    steps_per_epoch = train.steps_per_epoch or -(-len(shared.source) // train.batch_size)
    optimizer = Optimizer(
        method.parameter_groups(),
        {parameter: name for name, parameter in method.named_parameters()},
        train.optimizer,
        train.momentum,
        train.weight_decay,
        Schedule(train.learning_rate, train.schedule, train.warmup_steps, train.num_epochs * steps_per_epoch),
    )
    images = build_images(stage, shared.numerics, shared.loader)
    journal = Journal(
        shared.recorder,
        shared.collectives,
        shared.state.progress,
        train.batch_size,
        num_microbatches,
        shared.config.metrics.every_num_steps,
    )
    states = {**shared.state.parts(), "method": method, "optimizer": optimizer}

    def save(kind: Kind) -> None:
        journal.flush()  # refuses a state whose loss is not finite
        shared.save(states, kind)

    heldout = HeldOut(shared.heldout_source, images, shared.collectives) if shared.heldout_source else None
    trainer = Trainer(
        method=method,
        training_step=TrainingStep(method, optimizer, shared.numerics, shared.collectives, num_microbatches),
        clusterer=build_kmeans(stage.clustering, stage.clustering.num_clusters, shared.devices),
        reduction=FeatureReduction(stage.features.pca_dimensions, stage.features.whiten, stage.features.epsilon),
        source=shared.source,
        heldout=heldout,
        images=images,
        collectives=shared.collectives,
        boundary=shared.boundary,
        journal=journal,
        progress=shared.state.progress,
        adopted=shared.state.adopted,
        save=save,
        write_assignments=lambda clustering, epoch: shared.write_assignments(stage.name, epoch, clustering),
        seed=seed,
        num_epochs=train.num_epochs,
        steps_per_epoch=steps_per_epoch,
        cluster_every_num_epochs=stage.clustering.every_num_epochs,
        batch_size=train.batch_size,
        microbatch_size=train.microbatch_size,
        undecodable_is_fatal=shared.config.data.undecodable == "fail",
    )
    return Stage(stage.name, trainer, build_readout(stage, shared.devices), states)


def build_readout(stage: StageConfig, devices: tuple[torch.device, ...]) -> ReadoutRecipe:
    readout, features = stage.readout, stage.features
    return ReadoutRecipe(
        kmeans=build_kmeans(stage.clustering, readout.num_clusters or stage.clustering.num_clusters, devices),
        merge_to=readout.merge_to,
        pca_dimensions=features.pca_dimensions if readout.pca_dimensions == "auto" else readout.pca_dimensions,
        whiten=features.whiten if readout.whiten == "auto" else readout.whiten,
        epsilon=features.epsilon,
        num_restarts=readout.num_restarts,
    )
