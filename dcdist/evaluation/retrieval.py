"""Retrieval of an image's likes by R-MAC vectors, scored with junk: Oxford5k, Paris6k and their revision.

Shapes: N ranked images, Q queries, R regions of an image, C channels of the layer, D components of a vector.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from dcdist.clustering.pca import PCA
from dcdist.data.decode import UndecodableImage
from dcdist.data.retrieval_ground_truth import GroundTruth, Relevance
from dcdist.data.source import ImageSource
from dcdist.data.whole_images import ids_by_name, load_whole_images
from dcdist.errors import RunError, UsageError
from dcdist.evaluation.map_layers import LayerMaps
from dcdist.evaluation.retrieval_scores import average_precision, precision_at, ranks_of_positives
from dcdist.evaluation.rmac import aggregate, fit_whitening, grid, region_maxima
from dcdist.evaluation.untrained import learn_statistics, spread

STATISTICS_IMAGES = 64  # of which batch normalisation of an untrained network gets its statistics
DIMENSIONS = 512  # of whitened vectors, as published; a layer with fewer channels has as many as these
PRECISIONS = (1, 5, 10)


@dataclass(frozen=True)
class NamedImages:
    """The images of a data set by name, and those that turned out not to decode."""

    root: str
    source: ImageSource
    ids: Mapping[str, int]
    undecodable: dict[str, str] = field(default_factory=dict)  # reason by name

    @classmethod
    def of(cls, source: ImageSource, root: str) -> NamedImages:
        """Raises UsageError where two images have the same name."""
        return cls(root, source, ids_by_name(source, root))


@dataclass(frozen=True)
class Search:
    """Images, queries, and how networks are measured by them."""

    images: NamedImages
    truth: GroundTruth
    whitening: NamedImages | None  # on whose regions whitening is learnt; None: vectors are not whitened
    size: int  # long side in pixels
    levels: int
    overlap: float
    dimensions: int | None  # None: DIMENSIONS, or as many as the layer has channels
    num_threads: int  # that decode

    def learn_statistics(self, network: nn.Module, maps: LayerMaps) -> None:
        """Of some of the images that are searched, for an untrained network."""
        ranked = [self.images.ids[name] for name in self.truth.ranked]
        chosen = [ranked[place] for place in spread(len(ranked), STATISTICS_IMAGES)]
        loaded = load_whole_images(self.images.source, chosen, self.size, self.num_threads)

        def forward(pixels: torch.Tensor) -> None:
            with contextlib.suppress(UsageError):  # too small: said, with its name, when it is measured
                maps(pixels)

        learn_statistics(
            network, (image.pixels for image in loaded if not isinstance(image, UndecodableImage)), forward
        )

    def measure(self, maps: LayerMaps) -> dict[str, Any]:
        """The scores of one network, by setting of the ground truth and by query.

        Raises:
            UsageError: the layer has no maps of images of any size; a query's image does not decode or its box holds
                none of it; more dimensions than channels or regions.
            RunError: a map is not finite.
        """
        num_channels = maps.require_any_size(self.size)
        queries = list(self._queries(maps))  # first, for they show most of what may be wrong
        whitening = None if self.whitening is None else self._learn(maps, num_channels)
        found = {
            name: aggregate(maxima, whitening) for name, maxima in self._maxima(self.images, self.truth.ranked, maps)
        }
        if not found:
            raise UsageError(f"none of the {len(self.truth.ranked)} images of {self.images.root} decodes")
        names = np.array(list(found))
        vectors = torch.stack(list(found.values()))  # [N, D]
        scores = torch.stack([aggregate(maxima, whitening) for maxima in queries]) @ vectors.T  # [Q, N]
        return {
            "layer": maps.layer,
            "num_channels": num_channels,
            "num_dimensions": vectors.shape[1],
            "settings": {name: self._score(name, scores.numpy(), names) for name in self.truth.settings},
        }

    def _queries(self, maps: LayerMaps) -> Iterator[torch.Tensor]:
        """The maxima [R, C] of the box of each query."""
        queries = self.truth.queries
        ids = [self.images.ids[query.image] for query in queries]
        loaded = load_whole_images(self.images.source, ids, self.size, self.num_threads)
        for query, image in zip(queries, loaded, strict=True):
            what = f"{query.where}: image {query.image!r}"
            if isinstance(image, UndecodableImage):
                raise UsageError(f"{what} does not decode ({image}), and a query must: restore the file")
            try:
                shown = image.crop(query.box)
            except ValueError as error:
                raise UsageError(f"{what}: {error}") from error
            yield self._regions(maps, shown, what)

    def _learn(self, maps: LayerMaps, num_channels: int) -> PCA:
        assert self.whitening is not None
        wanted = self.dimensions
        if wanted is not None and wanted > num_channels:
            raise UsageError(f"--dimensions={wanted} are more than the {num_channels} channels of layer {maps.layer}")
        maxima = [maxima for _, maxima in self._maxima(self.whitening, list(self.whitening.ids), maps)]
        return fit_whitening(maxima, wanted or min(DIMENSIONS, num_channels))

    def _maxima(self, images: NamedImages, names: Sequence[str], maps: LayerMaps) -> Iterator[tuple[str, torch.Tensor]]:
        """The maxima [R, C] of each image that decodes."""
        ids = [images.ids[name] for name in names]
        loaded = load_whole_images(images.source, ids, self.size, self.num_threads)
        for name, image in zip(names, loaded, strict=True):
            if isinstance(image, UndecodableImage):
                images.undecodable[name] = str(image)
            else:
                yield name, self._regions(maps, image.pixels, f"image {name!r}")

    def _regions(self, maps: LayerMaps, pixels: torch.Tensor, what: str) -> torch.Tensor:
        try:
            found = maps(pixels)
        except UsageError as error:
            raise UsageError(f"{what}: {error}") from error
        regions = grid(found.shape[2], found.shape[3], self.levels, self.overlap)
        maxima = region_maxima(found, regions)[0].cpu()
        if not maxima.isfinite().all():
            raise RunError(f"{what}: layer {maps.layer} is not finite, the network has diverged")
        return maxima

    def _score(self, setting: str, scores: np.ndarray[Any, Any], names: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Of one way to count; queries without anything to find are left out."""
        queries = []
        for query, row in zip(self.truth.queries, scores, strict=True):
            relevance = query.relevance[setting]
            if relevance.positives:
                queries.append({"name": query.name, "image": query.image, **_score_query(relevance, row, names)})
        return {
            "mAP": _mean([query["average_precision"] for query in queries]),
            "mP": {str(k): _mean([query["precision"][str(k)] for query in queries]) for k in PRECISIONS},
            "num_queries": len(queries),
            "num_left_out": len(self.truth.queries) - len(queries),
            "queries": queries,
        }


def _score_query(relevance: Relevance, scores: np.ndarray[Any, Any], names: np.ndarray[Any, Any]) -> dict[str, Any]:
    positive, junk = (np.isin(names, list(images)) for images in (relevance.positives, relevance.junk))
    ranks = ranks_of_positives(scores, positive, junk)
    return {
        "average_precision": average_precision(ranks, len(relevance.positives)),
        "precision": {str(k): precision_at(ranks, k) for k in PRECISIONS},
        "num_positives": len(relevance.positives),
        "num_junk": len(relevance.junk),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
