"""What only a GPU can show, on one GPU: an epoch beside the bare network, k-means beside a bare matrix product.

    benchmarks/gpu.sh          installs what is missing, runs the tests in tests/gpu, then this

Images are those of .carry/images.parquet (benchmarks/carry.sh makes it), repeated until an epoch takes some seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.epoch import CHECKOUT, DATA, run_dcdist
from benchmarks.synthetic import measure, timed
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.models.numerics import Numerics

CONFIG = CHECKOUT / "configs" / "deepcluster_alexnet_imagenet.yaml"
IMAGES = CHECKOUT / ".carry" / "images.parquet"
NUM_CARRIED, NUM_IMAGES = 1000, 40_000
BATCH, NUM_CLUSTERS = 256, 1000
ROWS, FEATURES, CENTROIDS, ITERATIONS = 1_280_000, 256, 10_000, 5
Figures = dict[str, Any]


def carry(target: Path) -> None:
    """The images that travel to the GPU machine."""
    table = pq.read_table(DATA, filters=[("split", "=", "train")]).slice(0, NUM_CARRIED)
    pq.write_table(table.select(["image", "label"]), target)


def measure_epoch() -> Figures:
    """Images per second of dcdist's second epoch, and of the bare network in the same precision."""
    device = torch.device("cuda", 0)
    bare = measure(Numerics(device, True, True), BATCH, BATCH, 1, NUM_CLUSTERS, repeats=30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = pq.read_table(IMAGES)
        pq.write_table(pa.concat_tables([table] * (NUM_IMAGES // len(table))), folder / "images.parquet")
        overrides = [
            f"data.root={folder / 'images.parquet'}",
            "data.split=null",
            "data.heldout_split=null",
            f"train.microbatch_size={BATCH}",
            f"clustering.num_clusters={NUM_CLUSTERS}",
            "clustering.every_num_epochs=1",
            "train.num_epochs=2",
            "evaluation.summary=false",
            "launch.num_processes=1",
        ]
        ours = run_dcdist(overrides, NUM_IMAGES, folder, CONFIG)
    return {"dcdist": ours, "bare": bare}


def measure_kmeans() -> Figures:
    """Seconds an iteration, and the share of what the same matrix product alone reaches."""
    device = torch.device("cuda", 0)
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(2 * CENTROIDS, FEATURES, generator=generator)
    rows = modes[torch.randint(len(modes), (ROWS,), generator=generator)]
    rows += torch.randn(ROWS, FEATURES, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    on_device, centroids = rows[:65536].to(device), rows[:CENTROIDS].to(device).T.contiguous()
    product = timed(lambda: on_device @ centroids, 10, device)
    kmeans = KMeans(CENTROIDS, ITERATIONS, devices=(device,))
    ends: list[float] = []
    kmeans.fit(
        FeatureShard(torch.arange(ROWS), rows),
        ROWS,
        Collectives(),
        torch.Generator().manual_seed(1),
        at_boundary=lambda: ends.append(time.perf_counter()),
    )
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    ceiling = product * ROWS / len(on_device)
    return {"seconds_an_iteration": seconds, "product_seconds": ceiling, "share": ceiling / max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--carry", type=Path, metavar="FILE", help="write the images that travel, and end")
    arguments = parser.parse_args()
    if arguments.carry:
        carry(arguments.carry)
        return
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}\n")
    epoch, kmeans = measure_epoch(), measure_kmeans()
    ours, bare = epoch["dcdist"], epoch["bare"]
    print("| AlexNet, bf16, channels_last | dcdist, images/s | bare network | share | waiting for data |")
    print("| --- | --- | --- | --- | --- |")
    for phase in ("features", "training"):
        waiting = f"{ours['data_wait_ratio']:.1%}" if phase == "training" else ""
        print(f"| {phase} | {ours[phase]:.0f} | {bare[phase]:.0f} | {ours[phase] / bare[phase]:.0%} | {waiting} |")
    print(f"\n| k-means {ROWS:,} x {FEATURES}, K = {CENTROIDS:,} | seconds an iteration | bare product | share |")
    print("| --- | --- | --- | --- |")
    seconds = kmeans["seconds_an_iteration"]
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"| dcdist | {spread} | {kmeans['product_seconds']:.2f} | {kmeans['share']:.0%} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"gpu": properties.name, "epoch": epoch, "kmeans": kmeans}))


if __name__ == "__main__":
    main()
