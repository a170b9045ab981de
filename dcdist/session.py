"""One attempt at a run on one rank: settles what the run is, begins the attempt, records why it ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dcdist.attempt_description import describe_attempt
from dcdist.build.checks import check_stages
from dcdist.build.run import build_backbone, open_data, open_training_images
from dcdist.config.identity import resolve_autos, resume_config
from dcdist.config.load import parse_yaml, validate
from dcdist.config.schema import ExperimentConfig
from dcdist.data.source import ImageSource
from dcdist.distributed.collectives import Collectives, is_peer_lost
from dcdist.engine.preemption import SignalFlag
from dcdist.errors import DcdistError, ExitCode, PeerLost, Preempted, RunError, UsageError
from dcdist.metrics.logs import log_to_run
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import has_bfloat16
from dcdist.run_directory import CONFIG, Attempt, RunDirectory
from dcdist.training import Begun, Training

logger = logging.getLogger(__name__)

# So many attempts in a row without a commit, none ended by a signal, and nothing starts the next one by itself.
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3


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


@dataclass
class Session:
    """One attempt at a run, on one rank: its config, its images, its network, and how it ended."""

    given: ExperimentConfig
    collectives: Collectives
    devices: tuple[torch.device, ...]  # this process's own first
    signals: SignalFlag
    run_directory: RunDirectory = field(init=False)
    config: ExperimentConfig = field(init=False)
    source: ImageSource = field(init=False)
    heldout: ImageSource | None = field(init=False)
    backbone: Backbone = field(init=False)
    fingerprint: str = field(init=False)
    attempt: Attempt = field(init=False)

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    def run(self) -> ExitCode:
        """Trains what is left and scores it. Raises DcdistError where it ends otherwise."""
        self.run_directory = RunDirectory(self.given.run.dir)
        self.config = self.collectives.on_main(self.settle_config)
        self.source = open_training_images(self.config.data)
        self.heldout = (
            open_data(self.config.data, self.config.data.heldout_split) if self.config.data.heldout_split else None
        )
        self.backbone = build_backbone(self.config.model, self.config.views.image_size, self.config.run.seed)
        self.fingerprint = self.collectives.on_main(self.check_data)
        self.attempt = Attempt(self.run_directory, self.collectives.on_main(self.begin_attempt))
        training = Training(
            Begun(
                config=self.config,
                run_directory=self.run_directory,
                attempt=self.attempt,
                source=self.source,
                heldout=self.heldout,
                fingerprint=self.fingerprint,
                backbone=self.backbone,
                collectives=self.collectives,
                devices=self.devices,
                signals=self.signals,
            )
        )
        with (
            contextlib.closing(training),
            self.ending_recorded(),
            log_to_run(self.run_directory, self.attempt.number, self.collectives.rank),
        ):
            training.run()
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
        check_stages(stages, len(self.source), self.backbone, self.collectives.world_size)
        fingerprint = self.source.fingerprint()
        for number in self.run_directory.attempt_numbers():
            before = self.run_directory.read_attempt(number).get("data", {})
            if before and before["fingerprint"] != fingerprint:
                data = self.config.data
                left_out = (
                    f", or it was started by a dcdist that did not leave those of data.heldout_split="
                    f"{data.heldout_split} out of training"
                )
                raise UsageError(
                    f"data.root={data.root} holds {len(self.source)} images with fingerprint "
                    f"{fingerprint[:12]}, the run was started on {before['num_images']} with "
                    f"{before['fingerprint'][:12]}: images were added, removed or changed"
                    f"{left_out if data.split is None and data.heldout_split else ''}. "
                    "Give it the same data, or a new run.dir."
                )
        return fingerprint

    def begin_attempt(self) -> int:
        description = describe_attempt(self.collectives.world_size, self.device)
        description["data"] = {"fingerprint": self.fingerprint, "num_images": len(self.source)}
        return self.run_directory.begin_attempt(description).number

    @contextlib.contextmanager
    def ending_recorded(self) -> Iterator[None]:
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
