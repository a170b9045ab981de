"""A run as its directory has it: config, network and final clustering of the newest checkpoint that is whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dcdist.build.run import build_backbone
from dcdist.commits import CheckpointName, DamagedCheckpointError, read_commit
from dcdist.config.load import parse_yaml, validate
from dcdist.config.schema import ExperimentConfig, StageConfig
from dcdist.distributed.collectives import Collectives
from dcdist.engine.readout import Readout
from dcdist.engine.restore import StoredCheckpoint, open_newest
from dcdist.errors import RunError, UsageError
from dcdist.models.backbone import Backbone
from dcdist.run_directory import CONFIG, RunDirectory

logger = logging.getLogger(__name__)

_OF_THE_BACKBONE = "backbone."


@dataclass(frozen=True)
class StoredRun:
    """What a run's newest checkpoint holds, as far as it is looked at and not trained on."""

    directory: RunDirectory
    config: ExperimentConfig  # resolved
    checkpoint: CheckpointName
    position: Mapping[str, Any]  # where training was
    world_size: int  # processes that it was trained by
    backbone: Backbone
    readout: Readout | None  # the final clustering of the stage; None where the stage has not ended

    @property
    def stage(self) -> StageConfig:
        """The stage that the checkpoint is of."""
        return next(stage for stage in self.config.resolved_stages() if stage.name == self.position["stage"])

    def untrained(self, sobel: bool | None = None) -> Backbone:
        """The same network at its initial weights (random ones, wherever the run's own came from).

        Args:
            sobel: with or without Sobel's filters; None: as the run has it.
        """
        if sobel is None:
            return _build(self.config)
        model = self.config.model.model_copy(update={"sobel": sobel})
        return _build(self.config.model_copy(update={"model": model}))

    def fingerprints(self) -> set[str]:
        """Of the images that the run was trained on."""
        attempts = map(self.directory.read_attempt, self.directory.attempt_numbers())
        return {attempt["data"]["fingerprint"] for attempt in attempts if "data" in attempt}


def read_run(url: str, stage: str | None = None) -> StoredRun:
    """Opens a run, local or behind a URL, by the newest checkpoint of its line that is whole; starts nothing.

    Args:
        url: the run's folder.
        stage: as this stage left it; None: as it is.

    Raises:
        UsageError: there is no run, it has no checkpoint yet, or the stage has not ended.
        RunError: none of its checkpoints is whole, or its config builds another network.
    """
    directory = RunDirectory(url)
    if not directory.storage.exists(CONFIG):
        raise UsageError(f"{directory} has no {CONFIG}: is this a run's folder (run.dir)?")
    where = directory.storage.url(CONFIG)
    config = validate(parse_yaml(directory.storage.read_bytes(CONFIG).decode(), where), where)
    line = directory.line() if stage is None else _ends_of(stage, config, directory)
    stored = open_newest(directory, line, Collectives())
    if stored is None and stage is not None:
        raise UsageError(
            f"{directory} has no checkpoint of the end of stage {stage}: it has not ended yet, or the checkpoint is "
            "damaged or gone; leave the stage out for the run as it is"
        )
    if stored is None:
        raise UsageError(f"{directory} has no checkpoint yet: train it first, by dcdist train CONFIG run.dir={url}")
    with stored:
        position = stored.commit.position
        return StoredRun(
            directory=directory,
            config=config,
            checkpoint=stored.name,
            position=position,
            world_size=stored.commit.world_size,
            backbone=_backbone(config, stored),
            readout=_readout(stored) if position["stage_done"] else None,
        )


def _ends_of(stage: str, config: ExperimentConfig, directory: RunDirectory) -> list[CheckpointName]:
    """The checkpoints with which the stage ended: one, or several where it has grown."""
    names = [known.name for known in config.resolved_stages()]
    if stage not in names:
        raise UsageError(f"{directory} has no stage {stage!r}: its stages are {', '.join(names)}")
    found = []
    for name in directory.line():
        if name.kind == "final":
            try:
                position = read_commit(directory.storage, name).position
            except DamagedCheckpointError as error:
                logger.warning("checkpoint %s is damaged and passed over: %s", name, error)
            else:
                found += [name] if position["stage"] == stage else []
    return found


def _build(config: ExperimentConfig) -> Backbone:
    return build_backbone(config.model, config.views.image_size, config.run.seed)


def _backbone(config: ExperimentConfig, stored: StoredCheckpoint) -> Backbone:
    state: dict[str, torch.Tensor] = stored.read("method")
    weights = {
        name.removeprefix(_OF_THE_BACKBONE): tensor
        for name, tensor in state.items()
        if name.startswith(_OF_THE_BACKBONE)
    }
    backbone = _build(config)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"checkpoint {stored.name} does not hold the network of {CONFIG} ({error}): restore the {CONFIG} that "
            "the run was started with, or use the dcdist that trained it"
        ) from error
    return backbone


def _readout(stored: StoredCheckpoint) -> Readout:
    readout = Readout()
    readout.load_state_dict(stored.read("readout"))
    return readout
