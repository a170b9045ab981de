"""What `assign` costs beyond the features, and classifiers on five layers beyond those on one.

    python -m benchmarks.evaluation [--data FILE.parquet] [--images N] [--rounds R]

Both compare sides that take turns in this process, on AlexNet with Sobel at 224, by ratios of neighbouring turns: for
whatever else the machine does lasts longer than a turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.epoch import CONFIG, DATA, write_images
from dcdist.assign import assign
from dcdist.build.run import build_numerics
from dcdist.build.views import build_images, evaluation_view
from dcdist.config.schema import LaunchSection
from dcdist.data.loader import BatchLoader
from dcdist.data.loader_processes import start_server
from dcdist.data.source import ImageSource, open_source
from dcdist.devices import num_loader_processes, take_device
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place
from dcdist.evaluation.probe_inputs import FromImages, PooledMaps
from dcdist.evaluation.probe_recipes import RECIPES
from dcdist.evaluation.probe_training import build_probes, train_probes
from dcdist.evaluation.probes import ProbeName
from dcdist.features import extract_features
from dcdist.member import Member
from dcdist.stored_run import StoredRun, read_run

NUM_CLASSES = 1000  # as ImageNet's, whatever the images are: it is what the classifiers' cost depends on
LAYERS = tuple(f"conv{number}" for number in range(1, 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=1024, help="that classifiers are trained on in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = take_device(LaunchSection(), Place(0, 1, 0, 1))
    with tempfile.TemporaryDirectory(prefix="dcdist-benchmark-") as temporary:
        run = _short_run(options.data, Path(temporary))
        source = open_source(options.data)
        member = Member(Place(0, 1, 0, 1), device, Collectives())
        out = f"{temporary}/clusters.parquet"
        sides: dict[str, Callable[[], object]] = {
            "features alone": lambda: _features(str(run.directory), options.data, member),
            "assign": lambda: assign(str(run.directory), str(options.data), out, member, overwrite=True),
        }
        _compare(f"{len(source):,} images", sides, options.rounds)
        with _loader(run, source, device) as loader:
            train = _trainer(run, source, loader, options.images, device)
            sides = {"conv5 alone": lambda: train(("conv5",)), "conv1 to conv5": lambda: train(LAYERS)}
            _compare(f"an epoch of {options.images:,} images, {NUM_CLASSES:,} classes", sides, options.rounds)


def _short_run(data: Path, folder: Path) -> StoredRun:
    """A run that is done, on a few of the images."""
    few, _ = write_images(data, 256, folder)
    overrides = [f"data.root={few}", "data.heldout_split=null", f"run.dir={folder}/run", "train.num_epochs=1"]
    overrides += ["launch.num_processes=1", "clustering.num_clusters=100", "features.pca_dimensions=64"]
    overrides += ["evaluation.summary=false", "metrics.progress=false"]
    subprocess.run([sys.executable, "-m", "dcdist", "train", str(CONFIG), *overrides], check=True)
    return read_run(f"{folder}/run")


def _features(url: str, data: Path, member: Member) -> None:
    """The same pass as `assign`'s, from the run's folder, and no more."""
    run, source = read_run(url), open_source(data)
    numerics = build_numerics(run.stage.train, member.device)
    numerics.place(run.backbone)
    with _loader(run, source, member.device) as loader:
        extract_features(run.backbone, source, build_images(run.stage, numerics, loader), member.collectives)


@contextmanager
def _loader(run: StoredRun, source: ImageSource, device: torch.device) -> Iterator[BatchLoader]:
    workers = num_loader_processes(run.config.data, device)
    if workers:
        start_server()
    with closing(BatchLoader([source], workers, pin_memory=device.type == "cuda")) as loader:
        yield loader


def _trainer(
    run: StoredRun, source: ImageSource, loader: BatchLoader, num_images: int, device: torch.device
) -> Callable[[tuple[str, ...]], None]:
    recipe = replace(RECIPES["deepcluster"], num_epochs=1)
    numerics = build_numerics(run.stage.train, device)
    view = replace(evaluation_view(run.stage.views), crop="random", horizontal_flip=True)

    def train(layers: tuple[str, ...]) -> None:
        maps = PooledMaps({"trained": run.backbone}, layers, "alexnet", view.size, recipe.pools, numerics)
        probes = build_probes(
            maps, [ProbeName("trained", layer, "linear") for layer in layers], NUM_CLASSES, recipe, seed=0
        )
        inputs = FromImages(maps, source, np.arange(num_images), view, loader, Collectives())
        train_probes(probes, inputs, recipe, Collectives(), seed=0)

    return train


def _compare(what: str, sides: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Prints each side's seconds, and the median over the rounds of the second over the first."""
    for work in sides.values():
        work()  # libraries do once what they do once
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, work in list(sides.items())[:: 1 if number % 2 else -1]:  # no side always comes first
            start = time.monotonic()
            work()
            seconds[name].append(time.monotonic() - start)
    print(f"{what}, {rounds} rounds")
    for name, times in seconds.items():
        print(f"  {name:<16} {', '.join(f'{one:.1f}' for one in times)} s")
    (_, first), (_, second) = seconds.items()
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    print(f"  ratio            {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
