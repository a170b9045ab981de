"""A run and PASCAL VOC's images: what the three kinds of evaluation on VOC share.

Each trains copies of the run's network and of the untrained one further, once for each mode and seed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from dcdist.build.run import build_numerics
from dcdist.build.views import evaluation_view
from dcdist.data.augment import Normalization, to_float
from dcdist.data.loader_processes import start_server
from dcdist.data.seeded_examples import SeededExamples
from dcdist.data.voc import Task, Voc, VocImage, VocSplit, examine_pictures, open_voc
from dcdist.devices import num_loader_processes, take_device
from dcdist.distributed.place import Place
from dcdist.evaluate.kinds import mean_and_deviation
from dcdist.evaluate.report import header
from dcdist.evaluation.feature_sets import TRAINED, UNTRAINED
from dcdist.evaluation.fine_tuning import MODES, Recipe, training_keys
from dcdist.evaluation.untrained import BATCH_SIZE, NUM_IMAGES, learn_statistics
from dcdist.evaluation.voc_classification import RandomCrop
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics
from dcdist.stored_run import StoredRun, read_run

Say = Callable[[str], None]
Measure = Callable[[Backbone, str, int, Say], Mapping[str, Any]]  # network, mode, seed -> scores, "classes" among them


@dataclass(frozen=True)
class VocOptions:
    """What a person may choose of each kind; None is as the kind has it."""

    data: str
    train_split: str | None = None
    test_split: str | None = None
    modes: tuple[str, ...] = MODES
    iterations: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    stage: str | None = None
    device: str = "auto"
    num_seeds: int = 1
    baselines: bool = True

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with what was chosen."""
        given = {name: getattr(self, name) for name in ("iterations", "batch_size", "learning_rate", "weight_decay")}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Images:
    """The images of a split, all of which decode."""

    split: VocSplit
    images: Sequence[VocImage]
    shapes: Sequence[tuple[int, int]]  # heights and widths


@dataclass(frozen=True)
class VocSubject:
    """A run, and the images that its network is trained further and scored on."""

    run: StoredRun
    options: VocOptions
    train: Images
    test: Images
    numerics: Numerics
    _open: ExitStack

    @property
    def normalization(self) -> Normalization:
        """Of pixels, as the run's own evaluation has it."""
        return evaluation_view(self.run.stage.views).normalization

    def examples(self, images: Images, make: Callable[[VocImage, int], Any]) -> SeededExamples:
        """Made by the run's number of processes, which end with the subject."""
        workers = num_loader_processes(self.run.config.data, self.numerics.device)
        if workers:
            start_server()
        examples = SeededExamples(images.images, make, workers, self.numerics.device.type == "cuda")
        self._open.callback(examples.close)
        return examples

    def rows(self, measure: Measure) -> list[dict[str, Any]]:
        """A row for each network: of each mode the scores' means and deviations, and those of each seed."""
        networks = [(UNTRAINED, self._untrained())] if self.options.baselines else []
        networks.append((TRAINED, self.run.backbone))
        return [
            {"name": name, "modes": {mode: self._measure(name, backbone, mode, measure) for mode in self.options.modes}}
            for name, backbone in networks
        ]

    def _untrained(self) -> Backbone:
        """With the statistics of training images, as a network has them that was trained."""
        backbone, view = self.run.untrained(), evaluation_view(self.run.stage.views)
        self.numerics.place(backbone)
        examples = self.examples(self.train, RandomCrop(view))
        keys = training_keys(len(examples), NUM_IMAGES, seed=0)
        crops = examples.load(keys)
        batches = (
            torch.stack([crop for _, crop in islice(crops, BATCH_SIZE)]) for _ in range(NUM_IMAGES // BATCH_SIZE)
        )
        with self.numerics.autocast():
            pixels = (view.normalization(to_float(batch.to(self.numerics.device))) for batch in batches)
            learn_statistics(backbone, pixels, backbone)
        examples.close()
        return backbone

    def _measure(self, name: str, backbone: Backbone, mode: str, measure: Measure) -> dict[str, Any]:
        start = time.monotonic()
        seeds = []
        for seed in range(self.options.num_seeds):
            which = f"{name}, {mode}" + (f", seed {seed}" if self.options.num_seeds > 1 else "")
            seeds.append(dict(measure(backbone, mode, seed, _speaker(which))))
        names = [key for key, value in seeds[0].items() if isinstance(value, float)]
        scores = {key: mean_and_deviation([found[key] for found in seeds]) for key in names}
        return {"scores": scores, "seeds": seeds, "seconds": time.monotonic() - start}

    def report(self, kind: str, rows: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
        """What is written; `others` are the protocol and the published figures."""
        data = {
            part: {"split": str(images.split), "num_images": len(images.images)}
            for part, images in (("train", self.train), ("test", self.test))
        }
        return {
            **header(kind, self.run, self.numerics.device),
            "data": {"root": self.options.data, **data},
            "modes": list(self.options.modes),
            "num_seeds": self.options.num_seeds,
            "rows": rows,
            **others,
        }


@contextmanager
def open_voc_subject(
    url: str, options: VocOptions, task: Task, split: Callable[[Voc], tuple[str, str, str]]
) -> Iterator[VocSubject]:
    """Opens run and images; every image is decoded once, so that a damaged one is found before training.

    Args:
        url: the run's folder.
        options: what was chosen.
        task: whose lists name the images.
        split: year, and lists for training and test where none were chosen.

    Raises:
        UsageError: no such run, images or lists, or damaged ones; no such device.
    """
    run = read_run(url, options.stage)
    device = take_device(run.config.launch.model_copy(update={"device": options.device}), Place(0, 1, 0, 1))
    with ExitStack() as stack:
        voc = stack.enter_context(open_voc(options.data))
        year, train, test = split(voc)
        parts = [
            _examined(voc.split(wanted, task, year))
            for wanted in (options.train_split or train, options.test_split or test)
        ]
        yield VocSubject(run, options, parts[0], parts[1], build_numerics(run.stage.train, device), stack)


def _examined(split: VocSplit) -> Images:
    images = split.images()
    return Images(split, images, examine_pictures(images))


def _speaker(which: str) -> Say:
    return lambda line: print(f"{which}: {line}", file=sys.stderr, flush=True)
