"""From images to the rows that are clustered: one pass of the network, then PCA-whitening and L2 normalisation.

Shapes: N samples of the dataset, n of them on this rank, D raw features, d reduced ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dcdist.clustering.pca import PCA, fit_pca, l2_normalize
from dcdist.clustering.types import FeatureShard
from dcdist.data.loader import Batch, BatchLoader, Request
from dcdist.data.preparation import prepare
from dcdist.data.source import ImageSource
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.errors import RunError
from dcdist.faults import fault_point
from dcdist.models.heads import Embedder
from dcdist.models.numerics import Numerics

ROWS_A_BLOCK = 4096  # transformed at a time


@dataclass(frozen=True)
class ImagePass:
    """How evaluation images go through a network: everything but the network and the images."""

    view: View
    numerics: Numerics
    batch_size: int
    loader: BatchLoader
    memory_limit_bytes: int


class RawFeatures:
    """This rank's raw rows in half precision, in memory or, past the limit, in a memory-mapped temporary file.

    What is computed from them is computed on `device`, a block at a time.
    """

    def __init__(self, capacity: int, dimensions: int, memory_limit_bytes: int, device: torch.device) -> None:
        self.sample_ids = torch.empty(capacity, dtype=torch.int64)
        self.failures: dict[int, str] = {}
        num_elements = capacity * dimensions
        if 2 * num_elements <= memory_limit_bytes:
            rows = torch.empty(num_elements, dtype=torch.half)
        else:
            self._file = tempfile.NamedTemporaryFile(prefix="dcdist-features-")  # noqa: SIM115 (gone with this object)
            rows = torch.from_file(self._file.name, shared=True, size=num_elements, dtype=torch.half)
        self._rows = rows.view(capacity, dimensions)
        self._device = device
        self._count = 0

    def append(self, sample_ids: torch.Tensor, rows: torch.Tensor) -> None:
        end = self._count + len(rows)
        self.sample_ids[self._count : end] = sample_ids
        self._rows[self._count : end] = rows
        self._count = end

    def ids(self) -> torch.Tensor:
        """The sample ids [n] of the rows, ascending."""
        return self.sample_ids[: self._count]

    def id_blocks(self) -> Iterator[torch.Tensor]:
        """The sample ids of the rows of `blocks`, block by block."""
        yield from torch.split(self.ids(), ROWS_A_BLOCK)

    def blocks(self) -> Iterator[torch.Tensor]:
        """The rows [n, D] in order, a block [b, D] of half precision at a time, on the device."""
        for start in range(0, self._count, ROWS_A_BLOCK):
            yield self._rows[start : min(start + ROWS_A_BLOCK, self._count)].to(self._device)


def contiguous_range(num_samples: int, rank: int, world_size: int) -> range:
    """The sample ids of one rank: contiguous, unpadded, sizes within one of each other."""
    return range(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def num_boundaries(num_samples: int, batch_size: int, world_size: int) -> int:
    """Batches of the rank that has the most: all ranks meet at so many boundaries."""
    return -(-len(contiguous_range(num_samples, world_size - 1, world_size)) // batch_size)


class FeatureBatch(NamedTuple):
    """The rows of the images of a batch that decode, and why the others do not."""

    sample_ids: torch.Tensor  # [b] int64, ascending
    rows: torch.Tensor  # [b, D] float32 on the CPU
    failures: tuple[tuple[int, str], ...]


def extract_features(
    embedder: Embedder,
    source: ImageSource,
    images: ImagePass,
    collectives: Collectives,
    at_boundary: Callable[[], None] = lambda: None,
) -> RawFeatures:
    """This rank's raw features of the images that decode, by a pass with the embedder in evaluation mode.

    Collective: `at_boundary` is called once a batch, equally often on every rank, and may raise to stop.

    Raises:
        RunError: a feature is not finite; names the image.
    """
    own = contiguous_range(len(source), collectives.rank, collectives.world_size)
    raw = RawFeatures(len(own), embedder.num_features, images.memory_limit_bytes, images.numerics.device)
    for batch in feature_batches(embedder, source, images, collectives, at_boundary):
        raw.failures.update(batch.failures)
        raw.append(batch.sample_ids, batch.rows)
    return raw


@torch.no_grad()
def feature_batches(
    embedder: Embedder,
    source: ImageSource,
    images: ImagePass,
    collectives: Collectives,
    at_boundary: Callable[[], None] = lambda: None,
) -> Iterator[FeatureBatch]:
    """What `extract_features` collects, a batch at a time. Collective, as that is."""
    was_training = embedder.training
    embedder.train(False)
    try:
        for batch in _batches(source, images, (images.view,), collectives, at_boundary):
            (pixels,) = prepare(batch.to(images.numerics.device), (images.view,)).views
            with images.numerics.autocast():
                rows = embedder(pixels)
            rows = rows.float().cpu()[batch.decoded]
            sample_ids = batch.sample_ids[batch.decoded]
            _refuse_non_finite(rows, sample_ids, source)
            yield FeatureBatch(sample_ids, rows, batch.failures)
    finally:
        embedder.train(was_training)


def find_undecodable(
    source: ImageSource, images: ImagePass, collectives: Collectives, at_boundary: Callable[[], None]
) -> dict[int, str]:
    """Decodes this rank's range of the images and nothing else: sample id -> reason of those that fail. Collective."""
    failures: dict[int, str] = {}
    for batch in _batches(source, images, (), collectives, at_boundary):
        failures.update(batch.failures)
    return failures


def _batches(
    source: ImageSource,
    images: ImagePass,
    views: tuple[View, ...],
    collectives: Collectives,
    at_boundary: Callable[[], None],
) -> Iterator[Batch]:
    """This rank's range of the images, a batch at a time; `at_boundary` after each, equally often on every rank."""
    own = contiguous_range(len(source), collectives.rank, collectives.world_size)
    requests = (
        Request(np.arange(start, min(start + images.batch_size, own.stop)), None, views, seed=0)
        for start in range(own.start, own.stop, images.batch_size)
    )
    batches = images.loader.load(source, requests)
    for _ in range(num_boundaries(len(source), images.batch_size, collectives.world_size)):
        batch = next(batches, None)
        if batch is not None:
            yield batch
        fault_point("features:batch")
        at_boundary()


def _refuse_non_finite(rows: torch.Tensor, sample_ids: torch.Tensor, source: ImageSource) -> None:
    overflowing = ~(rows.abs() <= torch.finfo(torch.half).max).all(1)  # nan compares false
    if overflowing.any():
        key = source.keys[int(sample_ids[overflowing][0])]
        raise RunError(
            f"the features of {int(overflowing.sum())} images, the first {key!r}, are not finite in half precision: "
            "the network has diverged. Start a new run with a lower train.learning_rate."
        )


def reduce_features(
    raw: RawFeatures,
    collectives: Collectives,
    *,
    pca_dimensions: int | None,
    whiten: bool,
    epsilon: float,
) -> tuple[FeatureShard, PCA | None]:
    """Raw rows [n, D] -> PCA-whitened, L2-normalised rows [n, d], and the transform that was fitted.

    The moments are all-reduced, so the raw matrix is never in one place.
    """
    pca = None
    if pca_dimensions is not None:
        pca = fit_pca(raw.blocks, pca_dimensions, whiten=whiten, epsilon=epsilon, collectives=collectives)
    return transform_features(raw, pca), pca


def transform_features(raw: RawFeatures, pca: PCA | None) -> FeatureShard:
    """Raw rows [n, D] -> [n, d] by a transform that was fitted before (None: L2 normalisation alone)."""
    blocks = [l2_normalize(pca.transform(block) if pca else block.float()).cpu() for block in raw.blocks()]
    rows = torch.cat(blocks) if blocks else torch.empty(0, len(pca.eigenvalues) if pca else raw._rows.shape[1])
    return FeatureShard(raw.ids(), rows)


def gather_failures(own: dict[int, str], collectives: Collectives) -> Mapping[int, str]:
    """Every rank's undecodable images: sample id -> reason, on every rank."""
    gathered: dict[int, str] = {}
    for failures in collectives.all_gather_objects(own):
        gathered |= failures
    return gathered
