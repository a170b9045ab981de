"""A run and labelled images: passes the images through its networks, and assigns them to its clusters.

Shapes: N images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch

from dcdist.build.run import build_numerics
from dcdist.build.views import build_images
from dcdist.clustering.types import FeatureShard
from dcdist.data.source import ImageSource
from dcdist.devices import take_device
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place
from dcdist.engine.readout import Readout, assign_everywhere
from dcdist.evaluate.labelled_images import LabelledImages, open_labelled, open_loader
from dcdist.evaluate.measured import FinalClusters, Labelled, Measured, Options
from dcdist.evaluation.clusters import Partition
from dcdist.evaluation.feature_sets import PIXELS, TRAINED, UNTRAINED, FeatureSet, raw_pixels
from dcdist.evaluation.untrained import learn_from_images
from dcdist.features import ImagePass, RawFeatures
from dcdist.stored_run import StoredRun


@dataclass(frozen=True)
class Subject:
    """A run, and the labelled images that it is measured on."""

    run: StoredRun
    options: Options
    labelled: LabelledImages
    images: ImagePass

    @property
    def source(self) -> ImageSource:
        return self.labelled.source

    @property
    def heldout(self) -> ImageSource | None:
        return self.labelled.heldout

    @property
    def num_classes(self) -> int:
        """K of the clusterings that are made for comparison."""
        assert self.source.labels is not None
        return self.run.config.evaluation.num_clusters or int(self.source.labels.max()) + 1

    @property
    def whitening_dimensions(self) -> int:
        """Components of the whitened read-out."""
        return self.options.whitening_dimensions or self.run.config.evaluation.whitening_dimensions

    @property
    def is_the_runs_data(self) -> bool:
        return self.labelled.are_those_of(self.run)

    def measured(self) -> Iterator[Measured]:
        """Each of the networks that were asked for, with its features; one after another, for they are large."""
        makers = {
            PIXELS: lambda: raw_pixels(self.images),
            UNTRAINED: lambda: self._network(UNTRAINED),
            TRAINED: lambda: self._network(TRAINED),
        }
        for name in self.options.feature_sets:
            yield self._measure(makers[name]())

    def _network(self, name: str) -> FeatureSet:
        backbone = self.run.backbone if name == TRAINED else self.run.untrained()
        self.images.numerics.place(backbone)
        if name == UNTRAINED:
            learn_from_images(backbone, self.source, self.images)
        return FeatureSet(name, backbone, self.images)

    def _measure(self, features: FeatureSet) -> Measured:
        train, heldout = self._extract(features, self.source), None
        if self.heldout is not None:
            heldout = self._extract(features, self.heldout)
        final = None
        if features.name == TRAINED and self.run.readout is not None:
            final = self._final(self.run.readout, train, heldout)
        return Measured(
            name=features.name,
            train=_labelled(features, train, self.source),
            heldout=_labelled(features, heldout, self.heldout) if heldout and self.heldout else None,
            final=final,
        )

    def _extract(self, features: FeatureSet, source: ImageSource) -> list[RawFeatures]:
        """All rows, in the batches of the run's own processes: the last bits of a row may depend on its batch."""
        size = self.run.world_size
        return [features.extract(source, Collectives(rank, size)) for rank in range(size)]

    def _final(self, readout: Readout, train: list[RawFeatures], heldout: list[RawFeatures] | None) -> FinalClusters:
        partition = _assign(readout, train, self.source)
        recorded = self._recorded() if self.is_the_runs_data else None
        return FinalClusters(
            num_clusters=readout.num_clusters,
            train=partition,
            heldout=_assign(readout, heldout, self.heldout) if heldout and self.heldout else None,
            agreement_with_run=None if recorded is None else float((recorded == partition.assignments).float().mean()),
        )

    def _recorded(self) -> torch.Tensor | None:
        """The clusters [N] that the run itself wrote."""
        directory = self.run.directory
        path = directory.assignments_file(self.run.stage.name, "final")
        if not directory.storage.exists(path):
            return None
        table = pq.read_table(io.BytesIO(directory.storage.read_bytes(path)))
        return torch.from_numpy(table["cluster"].to_numpy().copy())


def _labelled(features: FeatureSet, raw: list[RawFeatures], source: ImageSource) -> Labelled:
    labelled = features.labelled(raw, source, Collectives())
    assert labelled is not None
    return labelled


def _assign(readout: Readout, raw: list[RawFeatures], source: ImageSource) -> Partition:
    shards = [readout.rows(part) for part in raw]
    rows = FeatureShard(
        torch.cat([shard.sample_ids for shard in shards]), torch.cat([shard.features for shard in shards])
    )
    assignments, _ = assign_everywhere(readout, rows, len(source), Collectives())
    return Partition(assignments, torch.from_numpy(source.labels))


@contextmanager
def open_subject(run: StoredRun, options: Options) -> Iterator[Subject]:
    """Opens the images; the processes that load them end with the block.

    Raises:
        UsageError: no such images or split, or they have no labels; no such device.
    """
    labelled = open_labelled(run, options)
    device = take_device(run.config.launch.model_copy(update={"device": options.device}), Place(0, 1, 0, 1))
    with open_loader(run, labelled, device) as loader:
        numerics = build_numerics(run.stage.train, device)
        yield Subject(run, options, labelled, build_images(run.stage, numerics, loader))
