"""What every launched process runs: environment -> process group -> stages -> scores -> exit code."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist

from dcdist.attempt_description import describe_attempt, job_started_at
from dcdist.build.checks import check_stages
from dcdist.build.run import build_backbone, build_recorder, open_data
from dcdist.build.stage import Surroundings, build_stage
from dcdist.clustering.types import Clustering
from dcdist.commits import Kind
from dcdist.config.identity import grown_stages, identity_digest, resolve_autos, resume_config
from dcdist.config.load import parse_yaml, to_yaml, validate
from dcdist.config.schema import ExperimentConfig
from dcdist.data.loader import BatchLoader
from dcdist.data.loader_processes import start_server
from dcdist.devices import devices_of_machine, num_loader_processes, take_device
from dcdist.distributed.collectives import Collectives, is_peer_lost
from dcdist.distributed.place import Place, read_place
from dcdist.distributed.process_group import join
from dcdist.engine.artefacts import assignments_table, keys_table, neighbors_table, to_parquet
from dcdist.engine.boundary import Boundary
from dcdist.engine.checkpoint import Checkpointer
from dcdist.engine.pipeline import RunState, Stage, run_stages
from dcdist.engine.preemption import Request, SaveClock, SignalFlag, Watch
from dcdist.errors import DcdistError, ExitCode, PeerLost, Preempted, RunError, UsageError
from dcdist.metrics.logs import log_to_run
from dcdist.metrics.recorder import Kind as RecordKind
from dcdist.metrics.recorder import Recorder
from dcdist.models.initial_weights import load_initial_weights
from dcdist.models.numerics import Numerics, has_bfloat16
from dcdist.run_directory import CONFIG, KEYS, Attempt, RunDirectory

logger = logging.getLogger("dcdist")

# So many attempts in a row without a commit, none ended by a signal, and nothing starts the next one by itself.
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3
WATCH_SECONDS = 2.0


def work(config: ExperimentConfig, signals: SignalFlag) -> ExitCode:
    """Runs this process's share of an experiment to its end, and says with what it ended."""
    place = read_place()
    try:
        device = take_device(config.launch, place)
        if num_loader_processes(config.data, device) > 0:
            start_server()
        collectives = _join(config, place, device)
        code = _Run(config, collectives, devices_of_machine(device, place), signals).run()
    except DcdistError as error:
        _say(place, error)
        code = error.exit_code
    if place.world_size > 1:
        _leave(code)
    return code


def _join(config: ExperimentConfig, place: Place, device: torch.device) -> Collectives:
    try:
        return join(place, device, config.launch.join_timeout_seconds, config.launch.collective_timeout_seconds)
    except PeerLost as error:
        if place.rank != 0:
            raise
        # An attempt that came to nothing: without its record such starts would go on for ever.
        run_directory = RunDirectory(config.run.dir)
        attempt = run_directory.begin_attempt(describe_attempt(place.world_size, device))
        attempt.record_end(error.exit_code, f"the processes did not meet: {error}")
        raise without_progress(run_directory, error) from error


def without_progress(run_directory: RunDirectory, error: DcdistError) -> DcdistError:
    """The error itself, or a failure where the run has ended so too often without getting anywhere."""
    if error.exit_code is not ExitCode.RUN_AGAIN:
        return error
    try:
        count = run_directory.attempts_without_progress()
    except OSError:
        return error
    if count < MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return error
    return DcdistError(f"{count} attempts in a row ended without a new checkpoint, the last one so: {error}")


def _say(place: Place, error: DcdistError) -> None:
    # One of each machine says what its processes know (a machine may lack a GPU that others have), except that a rank
    # that lost its peers may be the only one left.
    if place.local_rank == 0 or isinstance(error, PeerLost):
        prefix = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        print(f"dcdist: {prefix}{error}", file=sys.stderr, flush=True)


def _leave(code: ExitCode) -> NoReturn:
    """Ends the process at once: taking down a process group at the interpreter's end can wait for ever for peers that
    are gone, and was seen to abort a run that was done ("terminate called without an active exception").
    """
    if code is ExitCode.DONE:
        dist.destroy_process_group()
    gc.collect()  # semaphores of the loader's queues, which would be reported as leaked
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


@dataclass
class _Run:
    """One attempt at a run, on one rank."""

    given: ExperimentConfig
    collectives: Collectives
    devices: tuple[torch.device, ...]  # this process's own first
    signals: SignalFlag
    config: ExperimentConfig = field(init=False)
    attempt: Attempt = field(init=False)

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    def run(self) -> ExitCode:
        self.run_directory = RunDirectory(self.given.run.dir)
        self.config = self.collectives.on_main(self.settle_config)
        self.source = open_data(self.config.data, self.config.data.split)
        self.heldout = (
            open_data(self.config.data, self.config.data.heldout_split) if self.config.data.heldout_split else None
        )
        self.backbone = build_backbone(self.config.model, self.config.views.image_size, self.config.run.seed)
        self.fingerprint = self.collectives.on_main(self.check_data)
        self.attempt = Attempt(self.run_directory, self.collectives.on_main(self.begin_attempt))
        with self.ending_recorded(), log_to_run(self.run_directory, self.attempt.number, self.collectives.rank):
            self.train_and_score()
        return ExitCode.DONE

    def settle_config(self) -> ExperimentConfig:
        """On rank 0: the resolved config, held against the one that the run began with."""
        config = self.given
        if self.run_directory.storage.exists(CONFIG):
            text = self.run_directory.storage.read_bytes(CONFIG).decode()
            where = self.run_directory.storage.url(CONFIG)
            config = resume_config(config, validate(parse_yaml(text, where), where))
        return resolve_autos(config, has_bfloat16=has_bfloat16(self.device))

    def check_data(self) -> str:
        """On rank 0: the data's fingerprint, held against the run's; K, PCA and processes held against the data."""
        stages = self.config.resolved_stages()
        check_stages(stages, len(self.source), self.backbone.num_features, self.collectives.world_size)
        fingerprint = self.source.fingerprint()
        for number in self.run_directory.attempt_numbers():
            before = self.run_directory.read_attempt(number).get("data", {})
            if before and before["fingerprint"] != fingerprint:
                raise UsageError(
                    f"data.root={self.config.data.root} holds {len(self.source)} images with fingerprint "
                    f"{fingerprint[:12]}, the run was started on {before['num_images']} with "
                    f"{before['fingerprint'][:12]}: images were added, removed or changed. "
                    "Give it the same data, or a new run.dir."
                )
        return fingerprint

    def begin_attempt(self) -> int:
        description = describe_attempt(self.collectives.world_size, self.device)
        description["data"] = {"fingerprint": self.fingerprint, "num_images": len(self.source)}
        return self.run_directory.begin_attempt(description).number

    @contextlib.contextmanager
    def ending_recorded(self) -> Any:
        """Writes into the attempt why it ended; turns a hopeless row of attempts into a failure."""
        try:
            yield
        except DcdistError as error:
            self.record_end(error)
            raise self.without_progress(error) from error
        except Exception as error:
            if is_peer_lost(error):
                lost = PeerLost(f"another process of the run died or stopped answering: {error}")
                self.record_end(lost)
                raise self.without_progress(lost) from error
            if isinstance(error, OSError):  # a full disk, a file system that fails
                failed = RunError(f"the files of the run or of its data fail: {error}")
                self.record_end(failed)
                raise failed from error
            self.record_end(error)
            raise
        self.record_end(None)

    def record_end(self, error: Exception | None) -> None:
        if self.collectives.is_main:
            code = getattr(error, "exit_code", ExitCode.FAILURE) if error else ExitCode.DONE
            reason = f"{type(error).__name__}: {error}" if error else "done"
            signal_name = error.signal_name if isinstance(error, Preempted) else None
            try:
                self.attempt.record_end(code, reason, signal_name)
            except OSError as failure:  # must not hide why the attempt ended
                logger.warning("the end of attempt %d is not recorded: %s", self.attempt.number, failure)

    def without_progress(self, error: DcdistError) -> DcdistError:
        return without_progress(self.run_directory, error) if self.collectives.is_main else error

    def train_and_score(self) -> None:
        digest = identity_digest(self.config, self.fingerprint)
        checkpointer = Checkpointer(
            self.run_directory,
            self.attempt,
            self.collectives,
            digest,
            keep=self.config.checkpoint.keep,
        )
        was_configured = self.collectives.on_main(lambda: self.run_directory.storage.exists(CONFIG))
        found = checkpointer.begin()
        if found and not was_configured and found.commit.identity_digest != digest:
            raise UsageError(
                f"{self.run_directory} has lost its {CONFIG}, and checkpoint {found.name} was written with another "
                "config: give the config that the run was started with, or a new run.dir"
            )
        if found and was_configured:
            self.collectives.on_main(lambda: self.refuse_growth_before(found.commit.position["stage"]))
        if found is None and self.config.model.initial_weights:
            self.load_initial_weights(self.config.model.initial_weights)
        if self.collectives.is_main:
            self.run_directory.storage.write_bytes(CONFIG, to_yaml(self.config).encode())
            if not self.run_directory.storage.exists(KEYS):
                self.run_directory.write_keys(to_parquet(keys_table(self.source)))
        clock = SaveClock(self.config.checkpoint.every_num_steps, self.config.checkpoint.every_seconds)
        watch = Watch(self.ask_storage, WATCH_SECONDS) if self.collectives.is_main else None
        recorder = self.recorder()
        state = RunState()

        def save(states: Mapping[str, Any], kind: Kind) -> None:
            position = state.progress.state_dict()
            name = checkpointer.save(state.progress.step, kind, states, position)
            clock.saved()
            self.record(recorder, state, "event", event="checkpoint", name=str(name))
            recorder.sync()

        def write_clustering(stage: str, epoch: int | Literal["final"], clustering: Clustering) -> None:
            if not self.collectives.is_main:
                return
            if clustering.heads:
                name = self.run_directory.assignments_file(stage, epoch)
                self.run_directory.storage.write_bytes(name, to_parquet(assignments_table(clustering)))
            if clustering.neighbors is not None:
                name = self.run_directory.neighbors_file(stage)
                self.run_directory.storage.write_bytes(name, to_parquet(neighbors_table(clustering.neighbors)))

        sources = [self.source, self.heldout] if self.heldout else [self.source]
        loader = BatchLoader(
            sources, num_loader_processes(self.config.data, self.device), pin_memory=self.device.type == "cuda"
        )
        shared = Surroundings(
            config=self.config,
            source=self.source,
            heldout_source=self.heldout,
            backbone=self.backbone,
            numerics=self.numerics(),
            devices=self.devices,
            loader=loader,
            collectives=self.collectives,
            boundary=Boundary(self.collectives, self.signals, clock, watch),
            recorder=recorder,
            state=state,
            save=save,
            write_clustering=write_clustering,
        )
        try:
            began_from = str(found.name) if found else None
            names = [stage.name for stage in self.config.resolved_stages()]
            recorder.record(
                *("event", names[0], 0, found.name.step if found else 0),
                event="start",
                attempt=self.attempt.number,
                began_from=began_from,
                repeated_steps=checkpointer.repeated_steps,
            )
            last = run_stages(
                names,
                lambda number: build_stage(shared, number),
                state,
                found,
                write_clustering,
            )
            self.score(last, shared)
            if self.collectives.is_main:
                final = self.run_directory.assignments_file(last.name, "final")
                print(f"the cluster of every image: {self.run_directory.storage.url(final)}", flush=True)
        finally:
            loader.close()
            recorder.close()
            if watch:
                watch.close()

    def refuse_growth_before(self, stage_name: str) -> None:
        """On rank 0: a stage that the run has left cannot become longer any more."""
        where = self.run_directory.storage.url(CONFIG)
        saved = validate(parse_yaml(self.run_directory.storage.read_bytes(CONFIG).decode(), where), where)
        names = [stage.name for stage in self.config.resolved_stages()]
        left = [name for name in grown_stages(self.config, saved) if names.index(name) < names.index(stage_name)]
        if left:
            raise UsageError(
                f"stages.{left[0]}.train.num_epochs has grown, but {self.run_directory} is in stage {stage_name} "
                "already and does not go back: set it back, or give a new run.dir"
            )

    def load_initial_weights(self, path: str) -> None:
        """Rank 0's reading of the file, on every rank. Collective."""
        message = self.collectives.on_main(lambda: load_initial_weights(self.backbone, path))
        for tensor in self.backbone.state_dict().values():
            self.collectives.broadcast(tensor)
        logger.info(message)

    def recorder(self) -> Recorder:
        if not self.collectives.is_main:
            return Recorder(())
        return build_recorder(self.config, self.run_directory, self.attempt.number, job_started_at())

    def ask_storage(self) -> Request:
        """What the run directory asks of this attempt."""
        if self.attempt.superseded_by() is not None:
            return Request.YIELD
        return Request.STOP if self.attempt.stop_requested() else Request.NONE

    def numerics(self) -> Numerics:
        train = self.config.train
        return Numerics(self.device, bfloat16=train.precision == "bf16", channels_last=bool(train.channels_last))

    def record(self, recorder: Recorder, state: RunState, kind: RecordKind, **values: Any) -> None:
        progress = state.progress
        recorder.record(kind, stage=progress.stage, epoch=progress.epoch, step=progress.step, **values)

    def score(self, last: Stage, shared: Surroundings) -> None:
        """The summary that a run ends with, where labels exist; they serve nothing else."""
        if self.config.evaluation.summary and self.source.labels is not None:
            from dcdist.score import summarise  # scikit-learn takes a second to import

            with self.signals.acted_on_at_once():
                text = summarise(shared, last, self.run_directory)
            if self.collectives.is_main:
                print(text, end="\n\n", flush=True)
