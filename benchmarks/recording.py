"""What metrics cost: recording beside training, and the balance of a million clusters.

    python -m benchmarks.recording [--data FILE.parquet] [--images N] [--steps S]

Recording is switched on and off in blocks of steps of one run, with every sink that there is, so that both sides
share all else the machine does; the share is that of the blocks' medians. Beside it stands the time that is spent in
recording itself, which the noise of the machine does not reach. The data are the digits, whose steps are the shortest,
then photographs with AlexNet.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.epoch import CHECKOUT, CONFIG, DATA, write_images
from dcdist.config.load import load_config
from dcdist.data.digits import make_digits
from dcdist.distributed.collectives import Collectives
from dcdist.engine.journal import Journal
from dcdist.engine.preemption import SignalFlag
from dcdist.engine.training_step import StepSums
from dcdist.metrics.cluster_metrics import clustering_record
from dcdist.metrics.recorder import Recorder
from dcdist.session import Session

BLOCK = 10  # steps: as many as a record covers


class Switched:
    """Turns recording off in every second block of steps, and times the blocks."""

    def __init__(self) -> None:
        self.is_on = True
        self.num_steps = 0
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.block = self.began = 0.0
        self.recording = 0.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        step, waited = Journal.step, Journal.waited_for_data
        progressed, norm = Recorder.progressed, torch.nn.utils.get_total_norm
        nothing = torch.zeros(())

        def timed(function: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if not self.is_on:
                    return otherwise
                start = time.perf_counter()
                answer = function(*arguments)
                self.recording += time.perf_counter() - start
                return answer

            return call

        recorded_step = timed(step)

        def switched_step(journal: Journal, sums: StepSums, learning_rate: float, is_last: bool = False) -> None:
            recorded_step(journal, sums, learning_rate, is_last)
            self.num_steps += 1
            self.block += time.perf_counter() - self.began
            if self.num_steps % BLOCK == 0:
                self.seconds[self.is_on].append(self.block)
                self.block, self.is_on = 0.0, not self.is_on

        def noting(journal: Journal, seconds: float) -> None:
            self.began = time.perf_counter() - seconds
            waited(journal, seconds)

        Journal.step, Journal.waited_for_data = switched_step, noting  # type: ignore[method-assign, assignment]
        Recorder.progressed = timed(progressed)  # type: ignore[method-assign]
        torch.nn.utils.get_total_norm = timed(norm, nothing)
        yield
        Journal.step, Journal.waited_for_data = step, waited  # type: ignore[method-assign]
        Recorder.progressed = progressed  # type: ignore[method-assign]
        torch.nn.utils.get_total_norm = norm


def recording(config: Path, overrides: list[str]) -> None:
    switched = Switched()
    everything = ["metrics.prometheus_port=0", "metrics.tensorboard=true", "metrics.progress=true"]
    loaded = load_config(config, [*overrides, *everything, "evaluation.summary=false"])
    with switched.installed():
        Session(loaded, Collectives(), (torch.device("cpu"),), SignalFlag()).run()
    on, off = switched.seconds[True][1:], switched.seconds[False][1:]
    print(f"{config.name}: {len(on)} and {len(off)} blocks of {BLOCK} steps")
    print(f"  recorded        {statistics.median(on) / BLOCK * 1e3:8.2f} ms a step")
    print(f"  not recorded    {statistics.median(off) / BLOCK * 1e3:8.2f} ms a step")
    print(f"  share           {statistics.median(on) / statistics.median(off) - 1:8.2%}")
    num_recorded = BLOCK * len(switched.seconds[True])
    print(f"  in recording    {switched.recording / num_recorded * 1e3:8.2f} ms a step", flush=True)


def million_clusters(num_samples: int, num_clusters: int) -> None:
    generator = np.random.default_rng(0)
    before = generator.permutation(num_samples).astype(np.int32) % num_clusters
    moved = generator.random(num_samples) < 0.3
    now = np.where(moved, generator.integers(num_clusters, size=num_samples), before).astype(np.int32)
    labels = generator.integers(1000, size=num_samples).astype(np.int32)

    def work() -> None:
        clustering_record(
            head=0,
            assignments=now,
            num_clusters=num_clusters,
            previous_assignments=before,
            targets=labels,
            num_empty_repaired=0,
            objective=0.0,
            iterations=20,
            seconds={},
        )

    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{num_samples:,} images, K = {num_clusters:,}: {seconds:.2f} s, {peak / 1e6:.0f} MB at most", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=600, help="of each of the two runs")
    options = parser.parse_args()
    for num_samples in (1_281_167, 10_000_000):
        million_clusters(num_samples, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="dcdist-benchmark-") as temporary:
        folder = Path(temporary)
        make_digits(str(folder / "digits"))
        once = ["launch.num_processes=1", "clustering.every_num_epochs=1000", "train.num_epochs=1"]
        once += [f"train.steps_per_epoch={options.steps}", "train.schedule=constant", "data.heldout_split=null"]
        recording(
            CHECKOUT / "configs" / "deepcluster_digits.yaml",
            [*once, f"data.root={folder / 'digits'}", f"run.dir={folder / 'run-digits'}"],
        )
        few, _ = write_images(options.data, options.images, folder)
        sizes = ["clustering.num_clusters=100", "features.pca_dimensions=64"]
        sizes += ["train.batch_size=16", "train.microbatch_size=16"]
        recording(CONFIG, [*once, *sizes, f"data.root={few}", f"run.dir={folder / 'run'}"])


if __name__ == "__main__":
    main()
