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
from dcdist.verdict import without_progress

logger = logging.getLogger(__name__)


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
    fingerprint: str | None = field(init=False, default=None)
    attempt: Attempt | None = field(init=False, default=None)  # none until it has begun

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    def run(self) -> ExitCode:
        """Trains what is left and scores it. Raises DcdistError where it ends otherwise."""
        self.run_directory = RunDirectory(self.given.run.dir)
        with contextlib.ExitStack() as resources, self.ending_recorded():
            self.config = self.collectives.on_main(self.settle_config)
            self.collectives.on_all(self.open)
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
            resources.callback(training.close)  # after the end is recorded
            with log_to_run(self.run_directory, self.attempt.number, self.collectives.rank):
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

    def open(self) -> None:
        """The images and the network, where one machine may lack what others have."""
        data = self.config.data
        self.source = open_training_images(data)
        self.heldout = open_data(data, data.heldout_split) if data.heldout_split else None
        self.backbone = build_backbone(self.config.model, self.config.views.image_size, self.config.run.seed)

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
        if self.fingerprint is not None:
            description["data"] = {"fingerprint": self.fingerprint, "num_images": len(self.source)}
        return self.run_directory.begin_attempt(description).number

    @contextlib.contextmanager
    def ending_recorded(self) -> Iterator[None]:
        """Writes into the attempt why it ended; turns a hopeless row of attempts into a failure."""
        try:
            yield
        except Exception as error:
            ending = self.explain(error)
            self.record_end(ending)
            if not isinstance(ending, DcdistError):
                raise
            raise without_progress(self.run_directory, ending) if self.collectives.is_main else ending from error
        self.record_end(None)

    def explain(self, error: Exception) -> Exception:
        """The error as what it means to the run."""
        if is_peer_lost(error):
            error = PeerLost(f"another process of the run died or stopped answering: {error}")
        elif isinstance(error, OSError) and not isinstance(error, DcdistError):  # a full disk, a file system that fails
            error = RunError(f"the files of the run or of its data fail: {error}")
        if isinstance(error, PeerLost) and (word := self.collectives.word_left()):
            error = RunError(f"another process of the run ended by itself: {word}")
        return error

    def record_end(self, error: Exception | None) -> None:
        code = getattr(error, "exit_code", ExitCode.FAILURE) if error else ExitCode.DONE
        reason = f"{type(error).__name__}: {error}" if error else "done"
        if not self.collectives.is_main:
            if code in (ExitCode.USAGE, ExitCode.FAILURE):
                self.collectives.leave_word(reason)
            return
        signal_name = error.signal_name if isinstance(error, Preempted) else None
        try:
            if self.attempt is None:
                if code is ExitCode.USAGE:  # nothing was started
                    return
                # Without a record such starts would go on for ever.
                self.attempt = Attempt(self.run_directory, self.begin_attempt())
            self.attempt.record_end(code, reason, signal_name)
        except OSError as failure:  # must not hide why the attempt ended
            logger.warning("the end of %s is not recorded: %s", self.attempt or "the attempt", failure)
