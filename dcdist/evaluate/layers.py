"""Classifiers on a run's layers by published schedules of SGD, as `dcdist evaluate linear --preset` reports them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcdist.build.run import build_numerics
from dcdist.build.views import build_images, evaluation_view
from dcdist.data.loader import BatchLoader
from dcdist.data.source import ImageSource
from dcdist.data.transforms import View
from dcdist.errors import UsageError
from dcdist.evaluate.kinds import mean_and_deviation, spread
from dcdist.evaluate.labelled_images import LabelledImages, images_line, open_labelled, open_loader
from dcdist.evaluate.measured import DataOptions
from dcdist.evaluate.report import Report, header, where, write
from dcdist.evaluation import published, untrained
from dcdist.evaluation.feature_sets import TRAINED, UNTRAINED
from dcdist.evaluation.probe_inputs import FromImages, PooledMaps, ProbeInputs, cached
from dcdist.evaluation.probe_recipes import RECIPES, ProbeRecipe
from dcdist.evaluation.probe_training import ProbeScore, build_probes, score_probes, train_probes
from dcdist.evaluation.probes import ProbeName
from dcdist.evaluation.tables import aligned, figure
from dcdist.member import Member
from dcdist.models.backbone import OUTPUT, Backbone
from dcdist.stored_run import StoredRun, read_run

CORNERS = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # of ten crops; the others are mirror images
_PROGRESS_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class LayerOptions(DataOptions):
    """What may be chosen; None is as the preset has it."""

    preset: str = "deepcluster"
    layers: tuple[str, ...] = ()
    mlp: bool = False  # also a perceptron on the last convolution
    ten_crop: bool = False
    num_seeds: int = 1
    num_epochs: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    cache: str | None = None  # a folder for pooled maps; training images are then seen by their central crop
    baselines: bool = True

    def recipe(self) -> ProbeRecipe:
        """The preset with what was chosen otherwise."""
        wanted: dict[str, Any] = {
            "num_epochs": self.num_epochs,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "crop": "center" if self.cache else None,
        }
        if self.preset not in RECIPES:
            raise UsageError(f"--preset={self.preset!r} is unknown: quick, {', '.join(RECIPES)}")
        return replace(RECIPES[self.preset], **{key: value for key, value in wanted.items() if value is not None})


def evaluate_layers(url: str, options: LayerOptions, member: Member) -> Report | None:
    """Trains the classifiers of all layers in one pass over the images; the report on rank 0. Collective.

    Raises:
        UsageError: no run, checkpoint, labels or held-out images; an unknown preset or layer.
        RunError: a loss is not finite.
    """
    recipe = options.recipe()
    run = read_run(url, options.stage)
    images = open_labelled(run, options)
    if images.heldout is None:
        raise UsageError(
            "evaluate linear needs images that were kept out of training: name their split by --heldout-split (the "
            "run's own data.heldout_split is null, or it was set to none)"
        )
    networks = _networks(run, options.baselines)
    layers = options.layers or recipe.layers or tuple(networks[TRAINED].layer_names())
    _require_layers(networks[TRAINED], layers)
    numerics = build_numerics(run.stage.train, member.device)
    for network in networks.values():
        numerics.place(network)
    view = evaluation_view(run.stage.views)
    start = time.monotonic()
    with open_loader(run, images, member.device) as loader:
        for name, network in networks.items():
            if name != TRAINED:
                untrained.learn_from_images(network, images.source, build_images(run.stage, numerics, loader))
        maps = PooledMaps(networks, layers, run.config.model.name, view.size, recipe.pools, numerics)
        measurement = _Measurement(run, options, images, images.heldout, recipe, view, maps, loader, member)
        inputs = measurement.inputs()
        scores = [measurement.scores(inputs, seed) for seed in range(options.num_seeds)]
    if not member.collectives.is_main:
        return None
    report = {
        **header("linear", run, member.device),
        **images.describe(run),
        "seeds": list(range(options.num_seeds)),
        "seconds": {"all": time.monotonic() - start},
        "protocol": {
            "name": f"linear classifiers by SGD, {options.preset}",
            **asdict(recipe),
            UNTRAINED: untrained.DESCRIPTION,
            "momentum": 0.9,
            "test_crops": 10 if options.ten_crop else 1,
            "pooling": {layer: list(shape) for (name, layer), shape in maps.shapes.items() if name == TRAINED},
            "num_processes": member.collectives.world_size,
        },
        "rows": [_row(name, [score[name] for score in scores]) for name in scores[0]],
        "published": published.linear(run.config.model.name, options.preset),
    }
    write(run.directory, report)
    return report


def _networks(run: StoredRun, baselines: bool) -> dict[str, Backbone]:
    if not baselines:
        return {TRAINED: run.backbone}
    sobel = run.config.model.sobel
    other = f"{UNTRAINED}, {'without' if sobel else 'with'} Sobel"
    own = f"{UNTRAINED}, {'with' if sobel else 'without'} Sobel"
    return {TRAINED: run.backbone, own: run.untrained(), other: run.untrained(sobel=not sobel)}


def _require_layers(network: Backbone, layers: Sequence[str]) -> None:
    for layer in layers:
        try:
            known = layer == OUTPUT or bool(layer and network.body.get_submodule(layer))
        except AttributeError:
            known = False
        if not known:
            raise UsageError(
                f"--layers: the network has no layer {layer!r}; it has {', '.join([*network.layer_names(), OUTPUT])}"
            )


@dataclass(frozen=True)
class _Measurement:
    """Everything that the classifiers of one run are trained and scored with."""

    run: StoredRun
    options: LayerOptions
    images: LabelledImages
    heldout: ImageSource
    recipe: ProbeRecipe
    view: View  # of held-out images
    maps: PooledMaps
    loader: BatchLoader
    member: Member

    @property
    def batch_size(self) -> int:
        """Images at a time where none are trained on."""
        return self.run.stage.features.batch_size

    def inputs(self) -> ProbeInputs:
        """The training images, from the cache where there is one. Collective."""
        source, collectives = self.images.source, self.member.collectives
        assert source.labels is not None
        sample_ids = np.flatnonzero(source.labels >= 0)
        if self.options.cache is not None:
            folder = Path(self.options.cache)
            return cached(folder, self.maps, source, sample_ids, self.view, self.loader, collectives, self.batch_size)
        seen = replace(self.view, crop=self.recipe.crop, horizontal_flip=True)
        return FromImages(self.maps, source, sample_ids, seen, self.loader, collectives)

    def scores(self, inputs: ProbeInputs, seed: int) -> dict[ProbeName, ProbeScore]:
        """Trains and scores the classifiers of every network and layer by one seed. Collective."""
        names = [ProbeName(network, layer, "linear") for network, layer in self.maps.shapes]
        if self.options.mlp:
            *_, last = [OUTPUT, *(layer for _, layer in self.maps.shapes if layer != OUTPUT)]
            names += [ProbeName(network, layer, "mlp") for network, layer in self.maps.shapes if layer == last]
        collectives = self.member.collectives
        probes = build_probes(self.maps, names, self._num_classes(), self.recipe, seed)
        train_probes(probes, inputs, self.recipe, collectives, seed, _Progress(collectives.is_main, seed))
        ten = self.options.ten_crop
        views = [replace(self.view, position=position) for position in CORNERS] if ten else [self.view]
        return score_probes(probes, self.maps, self.heldout, views, ten, self.loader, self.batch_size, collectives)

    def _num_classes(self) -> int:
        assert self.images.source.labels is not None
        assert self.heldout.labels is not None
        return 1 + int(max(self.images.source.labels.max(), self.heldout.labels.max()))


class _Progress:
    """A line on the terminal now and then."""

    def __init__(self, shown: bool, seed: int) -> None:
        self._shown, self._seed = shown, seed
        self._begun = self._said = time.monotonic()

    def __call__(self, step: int, num_steps: int, loss: float) -> None:
        now = time.monotonic()
        if not self._shown or (now - self._said < _PROGRESS_SECONDS and step < num_steps):
            return
        self._said = now
        minutes, seconds = divmod(int((now - self._begun) / step * (num_steps - step)), 60)
        said = f"seed {self._seed}, step {step} of {num_steps}: loss {loss:.4f}, {minutes}:{seconds:02} left"
        print(said, file=sys.stderr, flush=True)


def _row(name: ProbeName, scores: Sequence[ProbeScore]) -> dict[str, Any]:
    top5 = [score.top5 for score in scores if score.top5 is not None]
    return {
        "name": name.network,
        "layer": name.layer + (", perceptron" if name.kind == "mlp" else ""),
        "top1": mean_and_deviation([score.top1 for score in scores]),
        "top5": mean_and_deviation(top5) if top5 else None,
        "seeds": [{"top1": score.top1, "top5": score.top5} for score in scores],
    }


def render_layers(report: Report) -> str:
    """A report for the terminal: a table for top-1, one for top-5 where there are more than 5 classes."""
    layers = list(dict.fromkeys(row["layer"] for row in report["rows"]))
    networks = list(dict.fromkeys(row["name"] for row in report["rows"]))
    cells = {(row["name"], row["layer"]): row for row in report["rows"]}
    lines = [f"{where(report)}, {images_line(report)}", ""]
    for score, title in (("top1", "top-1"), ("top5", "top-5")):
        if report["rows"][0][score] is None:
            continue
        rows = [[name, *(spread(cells[name, layer][score]) for layer in layers)] for name in networks]
        if score == "top1":
            rows += [
                [published.title(row), *(figure(row["top1"].get(layer)) for layer in layers)]
                for row in report["published"]
                if set(row["top1"]) & set(layers)
            ]
        lines += [*aligned([title, *layers], rows), ""]
    protocol = report["protocol"]
    crops = {"random": "random crops", "random_resized": "random resized crops", "center": "central crops"}
    test_crops = "ten crops" if protocol["test_crops"] == 10 else "the central crop"
    lines.append(
        f"linear classifiers on frozen layers, {protocol['num_epochs']} epochs of SGD on {crops[protocol['crop']]} of "
        f"the training images,\nscored by {test_crops} of held-out ones"
    )
    return "\n".join([*lines, *published.footnotes(report["published"])])
