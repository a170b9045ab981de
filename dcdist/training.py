"""What an attempt does between its beginning and its end: goes on from the newest checkpoint, trains, scores."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dcdist.build.recorder import build_recorder
from dcdist.build.stage import Surroundings, build_stage
from dcdist.clustering.types import Clustering
from dcdist.commits import Kind
from dcdist.config.identity import grown_stages, identity_digest
from dcdist.config.load import parse_yaml, to_yaml, validate
from dcdist.config.schema import ExperimentConfig
from dcdist.data.loader import BatchLoader
from dcdist.data.source import ImageSource
from dcdist.devices import num_loader_processes
from dcdist.distributed.collectives import Collectives, is_peer_lost
from dcdist.engine.artefacts import assignments_table, keys_table, neighbors_table, to_parquet
from dcdist.engine.boundary import Boundary
from dcdist.engine.checkpoint import Checkpointer
from dcdist.engine.machines import Machines, machine_name
from dcdist.engine.pipeline import RunState, Stage, run_stages
from dcdist.engine.preemption import Request, SaveClock, SignalFlag, Watch
from dcdist.engine.restore import StoredCheckpoint
from dcdist.errors import DcdistError, ExitCode, Superseded, UsageError
from dcdist.job import describe_launcher, job_started_at
from dcdist.metrics.recorder import Recorder
from dcdist.models.backbone import Backbone
from dcdist.models.initial_weights import load_initial_weights
from dcdist.run_directory import CONFIG, KEYS, Attempt, RunDirectory

logger = logging.getLogger(__name__)

WATCH_SECONDS = 2.0


@dataclass(frozen=True)
class Begun:
    """What an attempt has when it begins to train."""

    config: ExperimentConfig  # resolved
    run_directory: RunDirectory
    attempt: Attempt
    source: ImageSource
    heldout: ImageSource | None
    fingerprint: str  # of the source
    backbone: Backbone
    collectives: Collectives
    devices: tuple[torch.device, ...]  # this process's own first
    signals: SignalFlag


class Training:
    """The stages of a run, from wherever its newest checkpoint is to the scores. To be closed."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        self._config = begun.config
        self._directory = begun.run_directory
        self._storage = begun.run_directory.storage
        self._attempt = begun.attempt
        self._collectives = begun.collectives
        self._digest = identity_digest(begun.config, begun.fingerprint)
        self._checkpointer = Checkpointer(
            self._directory, self._attempt, self._collectives, self._digest, keep=self._config.checkpoint.keep
        )
        checkpoint = self._config.checkpoint
        self._clock = SaveClock(checkpoint.every_num_steps, checkpoint.every_seconds)
        self._state = RunState()
        self._recorder = Recorder(())

    def run(self) -> None:
        """Trains what is left of every stage, then scores the last."""
        found = self._begin()
        with contextlib.ExitStack() as resources:  # closes all of them, whichever of them fails
            if found:
                resources.callback(found.close)
            try:
                self._collectives.on_main(self._open_recorder)
                shared = self._surroundings(resources)
                names = [stage.name for stage in self._config.resolved_stages()]
                self._record_start(names[0], found)
                last = run_stages(
                    names, lambda number: build_stage(shared, number), self._state, found, self._write_clustering
                )
                self._score(last, shared)
                self._record_end(None)
            except Exception as error:
                self._record_end(error)
                raise

    def close(self) -> None:
        """Ends the records. Waits where somebody should see the last figures: better after the end is recorded."""
        self._recorder.close()

    def _surroundings(self, resources: contextlib.ExitStack) -> Surroundings:
        """What all stages share; what of it is to be closed is left to `resources`. Collective."""
        begun = self._begun
        watch = Watch(self._ask_storage, WATCH_SECONDS) if self._collectives.is_main else None
        if watch:
            resources.callback(watch.close)
        device = begun.devices[0]
        loader = BatchLoader(
            [begun.source, begun.heldout] if begun.heldout else [begun.source],
            num_loader_processes(self._config.data, device),
            pin_memory=device.type == "cuda",
        )
        resources.callback(loader.close)
        return Surroundings(
            config=self._config,
            source=begun.source,
            heldout_source=begun.heldout,
            backbone=begun.backbone,
            devices=begun.devices,
            loader=loader,
            collectives=self._collectives,
            boundary=Boundary(self._collectives, begun.signals, self._clock, watch, self._recorder.progressed),
            recorder=self._recorder,
            machines=Machines(self._collectives, device, machine_name()),
            state=self._state,
            save=self._save,
            write_clustering=self._write_clustering,
        )

    def _open_recorder(self) -> None:
        """On rank 0."""
        number, launcher = self._attempt.number, describe_launcher(os.environ)
        self._recorder = build_recorder(self._config, self._directory, number, job_started_at(), launcher)

    def _record_start(self, stage: str, found: StoredCheckpoint | None) -> None:
        if not self._collectives.is_main:
            return
        endings: dict[str, int] = {}
        repeated_steps = 0
        try:
            endings, repeated_steps = self._directory.history(before=self._attempt.number)
        except Exception as error:  # only told, no reason to end a run
            logger.warning("what earlier attempts came to is not recorded: %s: %s", type(error).__name__, error)
        self._recorder.record(
            *("event", stage, 0, found.name.step if found else 0),
            event="start",
            attempt=self._attempt.number,
            began_from=str(found.name) if found else None,
            repeated_steps=self._checkpointer.repeated_steps,
            repeated_steps_in_all=repeated_steps + self._checkpointer.repeated_steps,
            preemptions=endings,
        )

    def _record_end(self, error: Exception | None) -> None:
        """For who watches: whether this is the end of the run, or it will be started again."""
        code = getattr(error, "exit_code", ExitCode.FAILURE) if error else ExitCode.DONE
        if error and not isinstance(error, DcdistError) and is_peer_lost(error):
            code = ExitCode.RUN_AGAIN  # a backward pass raises torch's own error, which the session turns into PeerLost
        goes_on = code is ExitCode.RUN_AGAIN or isinstance(error, Superseded)
        finished = code in (ExitCode.DONE, ExitCode.STOPPED) and not goes_on
        self._event("end", exit_code=int(code), finished=finished, goes_on=goes_on)
        self._recorder.sync()

    def _begin(self) -> StoredCheckpoint | None:
        """The checkpoint to go on from, None for a new run, whose network then has its initial weights. Collective."""
        was_configured = self._collectives.on_main(lambda: self._storage.exists(CONFIG))
        found = self._checkpointer.begin()
        if found and not was_configured and found.commit.identity_digest != self._digest:
            raise UsageError(
                f"{self._directory} has lost its {CONFIG}, and checkpoint {found.name} was written with another "
                "config: give the config that the run was started with, or a new run.dir"
            )
        if found and was_configured:
            self._collectives.on_main(lambda: self._refuse_growth_before(found.commit.position["stage"]))
        if found is None and self._config.model.initial_weights:
            self._load_initial_weights(self._config.model.initial_weights)
        if self._collectives.is_main:
            self._storage.write_bytes(CONFIG, to_yaml(self._config).encode())
            if not self._storage.exists(KEYS):
                self._directory.write_keys(to_parquet(keys_table(self._begun.source)))
        return found

    def _refuse_growth_before(self, stage_name: str) -> None:
        """On rank 0: a stage that the run has left cannot become longer any more."""
        where = self._storage.url(CONFIG)
        saved = validate(parse_yaml(self._storage.read_bytes(CONFIG).decode(), where), where)
        names = [stage.name for stage in self._config.resolved_stages()]
        left = [name for name in grown_stages(self._config, saved) if names.index(name) < names.index(stage_name)]
        if left:
            raise UsageError(
                f"stages.{left[0]}.train.num_epochs has grown, but {self._directory} is in stage {stage_name} "
                "already and does not go back: set it back, or give a new run.dir"
            )

    def _load_initial_weights(self, path: str) -> None:
        """Rank 0's reading of the file, on every rank. Collective."""
        backbone = self._begun.backbone
        message = self._collectives.on_main(lambda: load_initial_weights(backbone, path))
        for tensor in backbone.state_dict().values():
            self._collectives.broadcast(tensor)
        logger.info(message)

    def _save(self, states: Mapping[str, Any], kind: Kind) -> None:
        progress, began, before = self._state.progress, time.monotonic(), self._checkpointer.newest
        name = self._checkpointer.save(progress.step, kind, states, progress.state_dict())
        self._clock.saved()
        if name == before:  # this moment is in a checkpoint already: nothing was written
            return
        self._event("checkpoint", name=str(name), seconds=time.monotonic() - began)
        self._recorder.sync()

    def _event(self, event: str, **values: Any) -> None:
        progress = self._state.progress
        self._recorder.record("event", progress.stage, progress.epoch, progress.step, event=event, **values)

    def _write_clustering(self, stage: str, epoch: int | Literal["final"], clustering: Clustering) -> None:
        if not self._collectives.is_main:
            return
        if clustering.heads:
            table = assignments_table(clustering)
            self._storage.write_bytes(self._directory.assignments_file(stage, epoch), to_parquet(table))
        if clustering.neighbors is not None:
            table = neighbors_table(clustering.neighbors)
            self._storage.write_bytes(self._directory.neighbors_file(stage), to_parquet(table))

    def _ask_storage(self) -> Request:
        """What the run directory asks of this attempt."""
        if self._attempt.superseded_by() is not None:
            return Request.YIELD
        return Request.STOP if self._attempt.stop_requested() else Request.NONE

    def _score(self, last: Stage, shared: Surroundings) -> None:
        """The summary that a run ends with, where labels exist (they serve nothing else); where its clusters are."""
        sources = [source for source in (shared.source, shared.heldout_source) if source is not None]
        if self._config.evaluation.summary and any(source.labels is not None for source in sources):
            from dcdist.score import summarise  # scikit-learn takes a second to import

            # The phase outside: a signal that arrives while a record is written would end that record's sink instead.
            with last.trainer.journal.phase("score"), self._begun.signals.acted_on_at_once():
                text = summarise(shared, last, self._directory)
            if text is not None:
                print(text, end="\n\n", flush=True)
        if self._collectives.is_main:
            final = self._directory.assignments_file(last.name, "final")
            print(f"the cluster of every image: {self._storage.url(final)}", flush=True)
