"""One DeepCluster epoch (AlexNet with Sobel at 224) by dcdist, by the plain recipe, and by the bare network.

    python -m benchmarks.epoch --data FILE.parquet [--num-images N] [--repeats R] [--json FILE] [a.b=value ...]

Each side runs in processes of its own, one side after the other, and the round is repeated; a figure is the best of
its rounds, for whatever else the machine does only slows down. All sides see the same images, the same K and the same
number of images a step; the plain recipe has as many threads and loader workers as dcdist has in all. What libraries
do once is not counted: dcdist's figures are those of its second epoch, the other sides warm up on random batches.
Arguments a.b=value change the config of dcdist (configs/deepcluster_imagenette.yaml), as on its command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from dcdist.launch.base import JobSpec
from dcdist.launch.local import LocalLauncher
from dcdist.metrics.jsonl import read_metrics
from dcdist.storage import open_storage

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIG = CHECKOUT / "configs" / "deepcluster_imagenette.yaml"
DATA = CHECKOUT.parent / "shared" / "data" / "imagenette224_5k.parquet"
FORWARD_REPEATS = 8
Figures = dict[str, float]


def write_images(data: Path, num_images: int, folder: Path) -> tuple[Path, Path]:
    """The first training images of a Parquet file, their bytes as they are, as a smaller file and as a folder."""
    table = pq.read_table(data, filters=[("split", "=", "train")]).slice(0, num_images)
    pq.write_table(table, folder / "images.parquet")
    for number, row in enumerate(table.select(["image", "label"]).to_pylist()):
        target = folder / "images" / f"{row['label']:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(row["image"])
    return folder / "images.parquet", folder / "images"


def run_dcdist(overrides: Sequence[str], folder: Path) -> Figures:
    """The second epoch of a real run: its phases as its own metrics tell them."""
    run = tempfile.mkdtemp(prefix="run-", dir=folder)
    _run([sys.executable, "-m", "dcdist", "train", str(CONFIG), *overrides, f"run.dir={run}"], folder)
    records = read_metrics(open_storage(run))
    epoch = next(record for record in records if record["kind"] == "epoch" and record["epoch"] == 1)
    (num_images,) = {record["num_images"] for record in records if record.get("event") == "features"}
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


def run_bare(job: JobSpec, folder: Path) -> Figures:
    output = folder / "bare.json"
    LocalLauncher().submit(
        JobSpec((*job.command, "--json", str(output)), job.num_processes, job.threads_per_process)
    ).wait()
    figures: Figures = json.loads(output.read_text())
    return figures


def _run(command: Sequence[str], folder: Path) -> str:
    environment = {**os.environ, "DCDIST_CACHE": str(folder / "cache"), "PYTHONPATH": str(CHECKOUT)}
    finished = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    return finished.stdout
