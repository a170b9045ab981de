"""One stage of a run: features, clusters, plan, train, record, again. An epoch reads on one screen: `run_epoch`.

Shapes: N samples of the dataset.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dcdist.clustering.pca import PCA
from dcdist.clustering.steps import ClusteringStep
from dcdist.clustering.types import Clustering, FeatureShard
from dcdist.commits import Kind
from dcdist.data.loader import Request
from dcdist.data.preparation import prepare
from dcdist.data.source import ImageSource
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import derive_seed, torch_generator
from dcdist.engine.boundary import Boundary
from dcdist.engine.heldout import HeldOut
from dcdist.engine.journal import Journal
from dcdist.engine.state import AdoptedClustering, Decodability, Progress
from dcdist.engine.training_step import TrainingStep
from dcdist.engine.undecodable import describe_undecodable, name_some
from dcdist.errors import RunError, UsageError
from dcdist.faults import fault_point
from dcdist.features import ImagePass, RawFeatures, extract_features, find_undecodable, gather_failures, reduce_features
from dcdist.methods.base import EpochPlan, Method, Microbatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureReduction:
    """How raw features become rows: the arguments of reduce_features."""

    pca_dimensions: int | None
    whiten: bool
    epsilon: float


@dataclass(frozen=True)
class Trainer:
    """Trains one stage from where `progress` says it is.

    `seed` is the stage's own; every random choice derives from it and from the epoch. `save` takes a checkpoint's
    kind, `write_clustering` a clustering and the epoch. `clustering_step` is None for methods without clusters;
    `cluster_every_num_epochs` None clusters once, when the stage begins.
    """

    method: Method
    training_step: TrainingStep
    clustering_step: ClusteringStep | None
    reduction: FeatureReduction
    source: ImageSource
    heldout: HeldOut | None
    images: ImagePass
    collectives: Collectives
    boundary: Boundary
    journal: Journal
    progress: Progress
    adopted: AdoptedClustering
    decodability: Decodability
    save: Callable[[Kind], None]
    write_clustering: Callable[[Clustering, int], None]
    seed: int
    num_epochs: int
    steps_per_epoch: int  # expected: an epoch's plan decides
    cluster_every_num_epochs: int | None
    batch_size: int
    microbatch_size: int
    undecodable_is_fatal: bool
    least_usable: int  # images that the final clustering needs: fewer are refused now, not after training

    def run(self) -> None:
        """All epochs that are left. Raises Preempted or StopRequested at a boundary, with everything saved."""
        steps_left = (self.num_epochs - self.progress.epoch) * self.steps_per_epoch - self.progress.step_in_epoch
        self.journal.begin(self.num_epochs, until_step=self.progress.step + max(0, steps_left))
        if self.decodability.undecodable is None and self.clustering_step is None:
            with self.journal.phase("scan"):
                self.find_undecodable()
        while self.progress.epoch < self.num_epochs:
            self.run_epoch(self.progress.epoch)

    def run_epoch(self, epoch: int) -> None:
        """One epoch, or what is left of it."""
        if self.clustering_is_due(epoch):
            shards, pca = self.rows_to_cluster()
            with self.journal.phase("cluster"):
                clustering = self.cluster(shards, epoch)
            self.adopt(clustering, pca, epoch)
        self.assign_heldout()
        plan = self.method.plan_epoch(epoch, self.decodability.usable(len(self.source)), self.adopted.clustering)
        self.journal.planned(plan)
        with self.journal.phase("train"):
            for microbatches, seeds in self.load_steps(plan, epoch):
                is_last = self.progress.step_in_epoch + 1 == plan.num_steps
                measured = self.journal.records_next_step(is_last)
                sums, learning_rate = self.training_step(microbatches, seeds, self.progress.step_in_stage, measured)
                self.progress.advance_step()
                self.journal.step(sums, learning_rate, is_last)
                fault_point("train:step")
                self.after_step()
        self.record(epoch)
        self.progress.advance_epoch()
        self.save("train")

    def after_step(self) -> None:
        """A boundary where steps may wait for a checkpoint that holds them."""
        self.boundary.at_step(self.progress.step, self.save_between_steps)

    def save_between_steps(self) -> None:
        """A checkpoint in an epoch."""
        with self.journal.saving():
            self.save("train")

    def clustering_is_due(self, epoch: int) -> bool:
        """Whether the epoch starts with a clustering that no checkpoint holds yet."""
        if self.clustering_step is None or self.progress.clustered_epoch == epoch:
            return False
        every = self.cluster_every_num_epochs
        return self.adopted.clustering is None or (every is not None and epoch % every == 0)

    def rows_to_cluster(self) -> tuple[Sequence[FeatureShard], PCA | None]:
        """This rank's rows: from the method's bank, or by a pass over the images, with the transform that made them."""
        bank = self.method.bank
        if bank is not None and self.adopted.clustering is not None:
            return bank.shards(), None
        with self.journal.phase("features"):
            raw = self.extract_features()
        if bank is not None:
            for block, sample_ids in zip(raw.blocks(), raw.id_blocks(), strict=True):
                bank.write(sample_ids, block.unsqueeze(1).expand(-1, bank.num_views, -1))
            return bank.shards(), None
        with self.journal.phase("reduce"):
            shard, pca = reduce_features(raw, self.collectives, **vars(self.reduction))
        return (shard,), pca

    def extract_features(self) -> RawFeatures:
        """This rank's raw features, of the images that decode."""
        raw = extract_features(
            self.method.embedder(), self.source, self.images, self.collectives, self.boundary.between_steps
        )
        self.leave_out(gather_failures(raw.failures, self.collectives))
        return raw

    def find_undecodable(self) -> None:
        """For methods that train on every image without having looked at all of them before."""
        if self.heldout:  # first: a resume looks again until the training images are known
            self.name_undecodable(self.heldout.find_undecodable(self.boundary.between_steps), self.heldout)
        failures = find_undecodable(self.source, self.images, self.collectives, self.boundary.between_steps)
        self.leave_out(gather_failures(failures, self.collectives))

    def leave_out(self, failures: Mapping[int, str]) -> None:
        """Undecodable training images are named, or fatal; training leaves them out."""
        self.decodability.undecodable = sorted(failures)
        if failures and len(failures) == len(self.source):
            some = name_some(self.source, failures)
            raise UsageError(f"no image of data.root decodes: {some}. Give it images, Parquet or packed shards")
        self.name_undecodable(failures)
        if failures and len(self.source) - len(failures) < self.least_usable:
            raise UsageError(
                f"{describe_undecodable(self.source, failures)}. The final clustering needs {self.least_usable} that "
                "do: mend them, or lower clustering.num_clusters, features.pca_dimensions (or readout's own) or "
                "clustering.num_neighbors"
            )

    def name_undecodable(self, failures: Mapping[int, str], heldout: HeldOut | None = None) -> None:
        """Counts and names undecodable images, training images or held-out ones; raises RunError where they are fatal.

        Only training needs images: where all held-out ones are damaged, the run goes on without their loss.
        """
        if not failures:
            return
        if heldout is None:
            message = describe_undecodable(self.source, failures)
        else:
            message = describe_undecodable(heldout.source, failures, heldout.split)
        if self.undecodable_is_fatal:
            raise RunError(f"{message}. Mend or remove them, or leave them out by data.undecodable=skip.")
        self.journal.event("undecodable", count=len(failures), message=message)
        if self.collectives.is_main and message not in self.decodability.said:
            self.decodability.said.add(message)
            logger.warning(message)

    def cluster(self, shards: Sequence[FeatureShard], epoch: int) -> Clustering:
        """What the rows of all ranks make; an interrupted clustering is repeated identically."""
        assert self.clustering_step is not None
        generator = torch_generator(self.seed, "cluster", epoch)
        return self.clustering_step.fit(
            shards, len(self.source), self.collectives, generator, self.boundary.between_steps
        )

    def adopt(self, clustering: Clustering, pca: PCA | None, epoch: int) -> None:
        """Makes the clusters the targets, then saves: a preemption never changes or repeats a finished clustering."""
        fault_point("adopt:begin")
        forgotten = self.method.adopt(clustering, torch_generator(self.seed, "adopt", epoch))
        self.training_step.optimizer.forget(forgotten)
        self.journal.clustering(self.adopted.clustering, clustering, self.source.labels)
        self.adopted.set(clustering, pca)
        self.progress.clustered_epoch = epoch
        self.save("clustered")

    def assign_heldout(self) -> None:
        """Targets of the held-out images, once a clustering: after its checkpoint, so that it waits for nothing."""
        clustering = self.adopted.clustering
        if self.heldout and clustering and self.adopted.heldout_targets is None:
            targets, failures = self.heldout.assign(
                self.method, self.adopted.pca, clustering, self.boundary.between_steps
            )
            self.name_undecodable(failures, self.heldout)
            self.adopted.heldout_targets = targets

    def load_steps(self, plan: EpochPlan, epoch: int) -> Iterator[tuple[list[Microbatch], list[int]]]:
        """This rank's microbatches of every step of the plan that is left, prepared on the device, with their seeds."""
        own = self.training_step.own_microbatches()
        positions = [
            step * self.batch_size + number * self.microbatch_size
            for step in range(self.progress.step_in_epoch, plan.num_steps)
            for number in own
        ]
        requests = (
            Request(
                stream.sample_ids[position : position + self.microbatch_size],
                None if stream.targets is None else stream.targets[position : position + self.microbatch_size],
                stream.views,
                derive_seed(self.seed, epoch, name, position),
            )
            for position in positions
            for name, stream in plan.streams.items()
        )
        batches = self.images.loader.load(self.source, requests)
        for first in range(0, len(positions), len(own)):
            started = time.perf_counter()
            loaded = [{name: next(batches) for name in plan.streams} for _ in own]
            self.journal.waited_for_data(time.perf_counter() - started)
            microbatches: list[Microbatch] = [
                {
                    name: prepare(batch.to(self.images.numerics.device), plan.streams[name].views)
                    for name, batch in streams.items()
                }
                for streams in loaded
            ]
            yield (
                microbatches,
                [derive_seed(self.seed, epoch, "forward", p) for p in positions[first : first + len(own)]],
            )

    def record(self, epoch: int) -> None:
        """The epoch's figures and, where it began with a clustering, its assignments."""
        fault_point("record:begin")
        heldout_loss = None
        if self.heldout and self.adopted.heldout_targets is not None:
            heldout_loss = self.heldout.loss(self.method, self.adopted.heldout_targets, self.after_step)
        self.journal.epoch(heldout_loss)
        if self.adopted.clustering and self.progress.clustered_epoch == epoch:
            self.write_clustering(self.adopted.clustering, epoch)
