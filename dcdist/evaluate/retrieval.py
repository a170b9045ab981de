"""`dcdist evaluate retrieval`: finds the images of a landmark by R-MAC vectors of a run's network; no training."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdist.build.run import build_numerics, open_data
from dcdist.build.views import evaluation_view
from dcdist.data.retrieval_ground_truth import ORIGINAL, read_ground_truth
from dcdist.devices import num_loader_processes, take_device
from dcdist.distributed.place import Place
from dcdist.errors import UsageError
from dcdist.evaluate.report import Report, header, write
from dcdist.evaluate.retrieval_table import PUBLISHED
from dcdist.evaluation.feature_sets import TRAINED, UNTRAINED
from dcdist.evaluation.map_layers import LayerMaps
from dcdist.evaluation.retrieval import STATISTICS_IMAGES, NamedImages, Search
from dcdist.evaluation.rmac import EPSILON
from dcdist.stored_run import StoredRun, read_run

KIND = "retrieval"


@dataclass(frozen=True)
class RetrievalOptions:
    """What a person may choose."""

    data: str
    ground_truth: Path
    whitening_data: str | None = None  # None: vectors are not whitened
    allow_same_data: bool = False  # whitening may be learnt on images that are searched
    stage: str | None = None
    size: int = 1024  # long side in pixels
    levels: int = 3
    overlap: float = 0.4
    dimensions: int | None = None  # None: DIMENSIONS, or as many as the layer has channels
    layer: str | None = None  # None: the last map before the last pooling
    device: str = "auto"
    baselines: bool = True


def evaluate_retrieval(url: str, options: RetrievalOptions) -> Report:
    """The report, which is also written into the run.

    Args:
        url: the run's folder, local or any fsspec URL. It may be running: its newest checkpoint counts.
        options: what is searched, and how.

    Raises:
        UsageError: no run or checkpoint; images or ground truth that do not fit, which it names; a network that takes
            images of one size alone.
        RunError: a map is not finite.
    """
    run = read_run(url, options.stage)
    # Images come in hundreds of sizes, for each of which the fastest kernels would be tried out anew.
    launch = run.config.launch.model_copy(update={"device": options.device, "deterministic": True})
    device = take_device(launch, Place(0, 1, 0, 1))
    # Full precision, as published; the networks see each image once.
    numerics = replace(build_numerics(run.stage.train, device), bfloat16=False)
    search = _open(run, options, max(1, num_loader_processes(run.config.data, device)))
    networks = {UNTRAINED: run.untrained()} if options.baselines else {}
    networks[TRAINED] = run.backbone
    rows = []
    for name, backbone in networks.items():
        start = time.monotonic()
        maps = LayerMaps(backbone, options.layer, evaluation_view(run.stage.views).normalization, numerics)
        if name == UNTRAINED:
            search.learn_statistics(backbone, maps)
        rows.append({"name": name, **search.measure(maps), "seconds": time.monotonic() - start})
    report = {**header(KIND, run, device), **_describe(search, options.ground_truth), "rows": rows}
    write(run.directory, report)
    return report


def _open(run: StoredRun, options: RetrievalOptions, num_threads: int) -> Search:
    """Reads what the queries are before anything is computed."""
    if options.dimensions is not None and options.whitening_data is None:
        raise UsageError(f"--dimensions={options.dimensions} is of whitened vectors: name --whitening-data, too")
    images = _images(run, options.data)
    truth = read_ground_truth(options.ground_truth, images.ids)
    whitening = None if options.whitening_data is None else _images(run, options.whitening_data)
    if whitening is not None and not options.allow_same_data:
        _refuse_shared(images, whitening)
    return Search(
        images=images,
        truth=truth,
        whitening=whitening,
        size=options.size,
        levels=options.levels,
        overlap=options.overlap,
        dimensions=options.dimensions,
        num_threads=num_threads,
    )


def _images(run: StoredRun, root: str) -> NamedImages:
    return NamedImages.of(open_data(run.config.data.model_copy(update={"root": root}), None), root)


def _refuse_shared(images: NamedImages, whitening: NamedImages) -> None:
    """Whitening that has seen the images which are searched flatters the scores."""
    for name, other in whitening.ids.items():
        own = images.ids.get(name)
        if own is None or images.source.sizes[own] != whitening.source.sizes[other]:
            continue
        if images.source.read(own) == whitening.source.read(other):
            raise UsageError(
                f"--whitening-data {whitening.root} holds image {name!r} of --data {images.root}: whitening is to be "
                "learnt on another set (Paris6k for Oxford5k, and the other way round); --allow-same-data permits it"
            )


def _describe(search: Search, ground_truth: Path) -> dict[str, Any]:
    """What was searched and how, once the networks are measured."""
    images, truth = search.images, search.truth
    positives = {
        name for query in truth.queries for relevance in query.relevance.values() for name in relevance.positives
    }
    data = {
        "root": images.root,
        "ground_truth": str(ground_truth),
        "num_queries": len(truth.queries),
        "num_ranked": len(truth.ranked) - len(images.undecodable),
        "num_not_ranked": len(images.ids) - len(truth.ranked),
        "undecodable": images.undecodable,
        "num_undecodable_positives": len(positives & images.undecodable.keys()),
        "fingerprint": images.source.fingerprint(),
    }
    protocol = {
        "name": "R-MAC",
        "long_side": search.size,
        "levels": search.levels,
        "overlap": search.overlap,
        "region": "maxima, length 1" + (", whitened, length 1" if search.whitening else ""),
        "image": "sum of the regions, length 1",
        "query": "its box, cut out after resizing",
        "similarity": "dot product",
        "average_precision": "trapezoids; junk taken out; positives that do not decode count as not found",
        "whitening": search.whitening and _describe_whitening(search.whitening),
        "precision": "fp32",
        UNTRAINED: f"its batch normalisation has the statistics of {STATISTICS_IMAGES} images that are searched",
    }
    published = list(PUBLISHED) if truth.settings == (ORIGINAL,) else []
    return {"data": data, "protocol": protocol, "published": published}


def _describe_whitening(images: NamedImages) -> dict[str, Any]:
    return {
        "root": images.root,
        "num_images": len(images.ids) - len(images.undecodable),
        "undecodable": images.undecodable,
        "epsilon": EPSILON,
        "fingerprint": images.source.fingerprint(),
    }
