"""One DeepCluster epoch (AlexNet with Sobel at 224) by dcdist, by the plain recipe, and by the bare network.

    python -m benchmarks.epoch --data FILE.parquet [--num-images N] [--repeats R] [--json FILE] [a.b=value ...]

Each side runs in processes of its own, one side after the other, and the round is repeated; a figure is the best of
its rounds, for whatever else the machine does only slows down. All sides see the same images, the same K and the same
number of images a step; the plain recipe has as many threads and loader workers as dcdist has in all. What libraries
do once is not counted: dcdist's figures are those of its second epoch, the other sides warm up on random batches.
Arguments a.b=value change the config of dcdist (configs/deepcluster_imagenette.yaml), as on its command line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from dcdist.config.identity import resolve_autos
from dcdist.config.load import load_config
from dcdist.config.schema import ExperimentConfig
from dcdist.launch.base import JobSpec
from dcdist.launch.local import LocalLauncher, local_job
from dcdist.metrics.jsonl import read_metrics
from dcdist.models.numerics import has_bfloat16
from dcdist.storage import open_storage

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIG = CHECKOUT / "configs" / "deepcluster_imagenette.yaml"
DATA = CHECKOUT.parent / "shared" / "data" / "imagenette224_5k.parquet"
BARE_REPEATS = 6
Figures = dict[str, float]
PLAIN, BARE = "plain recipe, fp32", "bare network, synthetic data"


def write_images(data: Path, num_images: int, folder: Path) -> tuple[Path, Path]:
    """The first training images of a Parquet file, their bytes as they are, as a smaller file and as a folder."""
    table = pq.read_table(data, filters=[("split", "=", "train")]).slice(0, num_images)
    pq.write_table(table, folder / "images.parquet")
    for number, row in enumerate(table.select(["image", "label"]).to_pylist()):
        target = folder / "images" / f"{row['label']:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(row["image"])
    return folder / "images.parquet", folder / "images"


def run_dcdist(overrides: Sequence[str], num_images: int, folder: Path, config: Path = CONFIG) -> Figures:
    """The second epoch of a real run: its phases as its own metrics tell them."""
    run = tempfile.mkdtemp(prefix="run-", dir=folder)
    _run([sys.executable, "-m", "dcdist", "train", str(config), *overrides, f"run.dir={run}"], folder)
    records = read_metrics(open_storage(run))
    epoch = next(record for record in records if record["kind"] == "epoch" and record["epoch"] == 1)
    seconds = epoch["seconds"]
    return {
        "features": num_images / seconds["features"],
        "training": epoch["samples_per_second"],
        "features_seconds": seconds["features"],
        "clustering_seconds": seconds["reduce"] + seconds["cluster"],
        "training_seconds": seconds["train"],
        "data_wait_ratio": epoch["data_wait_ratio"],
    }


def run_plain(arguments: Sequence[str], folder: Path) -> Figures:
    output = _run([sys.executable, "-W", "ignore", "-m", "benchmarks.plain_recipe", *arguments], folder)
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def run_bare(config: ExperimentConfig, num_threads: int, folder: Path) -> Figures:
    """The network alone on one random batch, in as many processes and threads as dcdist has."""
    job = local_job(config.launch, ())
    train, features = config.train, config.features
    threads = num_threads // job.num_processes
    assert isinstance(train.microbatch_size, int)
    sizes = {
        "threads": threads,
        "batch-size": features.batch_size,
        "microbatch-size": train.microbatch_size,
        "num-microbatches": train.batch_size // train.microbatch_size // job.num_processes,
        "num-clusters": config.clustering.num_clusters,
        "repeats": BARE_REPEATS,
    }
    output = folder / "bare.json"
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    layout = "--channels-last" if train.channels_last else "--no-channels-last"
    command = (sys.executable, "-m", "benchmarks.synthetic", *arguments, f"--precision={train.precision}", layout)
    code = LocalLauncher().submit(JobSpec((*command, f"--json={output}"), job.num_processes, threads)).wait()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    figures: Figures = json.loads(output.read_text())
    return figures


def _run(command: Sequence[str], folder: Path) -> str:
    environment = {**os.environ, "DCDIST_CACHE": str(folder / "cache"), "PYTHONPATH": str(CHECKOUT)}
    finished = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    return finished.stdout


def best(rounds: Sequence[Figures]) -> Figures:
    """Highest speeds, least seconds and waiting."""
    return {
        name: (max if name in ("features", "training") else min)(figures[name] for figures in rounds)
        for name in rounds[0]
    }


def table(sides: dict[str, Figures]) -> str:
    plain, bare = sides[PLAIN], sides[BARE]
    lines = [
        "| side | features, images/s | of plain | of bare | training, images/s | of plain | of bare "
        "| waiting for data | clustering, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side, figures in sides.items():
        cells = [side]
        for phase in ("features", "training"):
            speed = figures[phase]
            cells += [f"{speed:.1f}", f"{speed / plain[phase]:.2f}x", f"{speed / bare[phase]:.0%}"]
        cells.append(f"{figures['data_wait_ratio']:.1%}" if "data_wait_ratio" in figures else "")
        cells.append(f"{figures['clustering_seconds']:.2f}" if "clustering_seconds" in figures else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--num-images", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    arguments = parser.parse_args()
    num_threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, image_folder = write_images(arguments.data, arguments.num_images, folder)
        overrides = [
            f"data.root={images}",
            "data.heldout_split=null",
            "train.num_epochs=2",
            "clustering.every_num_epochs=1",
            "readout.num_restarts=1",
            "evaluation.summary=false",
            *arguments.overrides,
        ]
        config = load_config(CONFIG, overrides)
        config = resolve_autos(config, has_bfloat16=has_bfloat16(torch.device("cpu")))
        plain = {
            "folder": image_folder,
            "num-clusters": config.clustering.num_clusters,
            "batch-size": config.train.batch_size,
            "threads": num_threads,
            "workers": local_job(config.launch, ()).num_processes,  # dcdist has one each
        }
        plain_arguments = [f"--{name}={value}" for name, value in plain.items()]
        sides: dict[str, Callable[[], Figures]] = {
            "dcdist": lambda: run_dcdist(overrides, arguments.num_images, folder),
            PLAIN: lambda: run_plain(plain_arguments, folder),
            "plain recipe, bf16, channels_last": lambda: run_plain(
                [*plain_arguments, "--bfloat16", "--channels-last"], folder
            ),
            BARE: lambda: run_bare(config, num_threads, folder),
        }
        rounds: dict[str, list[Figures]] = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side, measure in sides.items():
                rounds[side].append(measure())
    figures = {side: best(results) for side, results in rounds.items()}
    print(
        f"{arguments.num_images} images at 224, {config.train.batch_size} a step, K = "
        f"{config.clustering.num_clusters}, {num_threads} threads, {config.launch.num_processes} processes of dcdist, "
        f"best of {arguments.repeats}\n"
    )
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"arguments": vars(arguments), "best": figures, "rounds": rounds}, default=str)
        )


if __name__ == "__main__":
    main()
