"""The final clusters of a run, of its own images or of any others, as they stream through the network.

Shapes: N images, b of a block, D features.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdist.build.run import build_numerics
from dcdist.build.views import build_images
from dcdist.data.loader import BatchLoader
from dcdist.data.loader_processes import start_server
from dcdist.data.source import ImageSource, open_source
from dcdist.devices import num_loader_processes
from dcdist.distributed.collectives import Collectives
from dcdist.engine.artefacts import ASSIGNMENTS_SCHEMA
from dcdist.engine.readout import Readout
from dcdist.errors import UsageError
from dcdist.features import ROWS_A_BLOCK, ImagePass, RawFeatures, contiguous_range, feature_batches
from dcdist.member import Member
from dcdist.models.backbone import Backbone
from dcdist.storage import Storage, open_file
from dcdist.stored_run import StoredRun, read_run

SCHEMA = pa.schema([ASSIGNMENTS_SCHEMA.field(0), pa.field("key", pa.string()), *list(ASSIGNMENTS_SCHEMA)[1:]])


@dataclass(frozen=True)
class Assigned:
    """What was written."""

    url: str
    num_images: int
    num_undecodable: int
    num_clusters: int  # K of the run
    seconds: float  # from the first image to the last
    agreement: float | None  # share of the images in the cluster that the run recorded; None of images not its own

    def lines(self) -> list[str]:
        """For the terminal."""
        rate = self.num_images / self.seconds
        lines = [
            f"{self.num_images:,} images in {self.num_clusters:,} clusters, {self.seconds:.1f} s, {rate:.0f} a second; "
            f"{self.num_undecodable:,} do not decode (cluster -1)"
        ]
        if self.agreement is not None:
            lines.append(f"the run's own images: {self.agreement:.4%} as in its final clustering")
        return [*lines, self.url]


def assign(
    run_url: str,
    root: str,
    out: str,
    member: Member,
    split: str | None = None,
    stage: str | None = None,
    overwrite: bool = False,
    without: str | None = None,
) -> Assigned | None:
    """Writes the cluster of every image of a source to a Parquet file; says what came of it on rank 0. Collective.

    Columns: sample_id int64, key string, head int16 (0), cluster int32 (-1 where an image does not decode), distance
    float32 (as in RUN/assignments). Rows are in the order of the images. No process holds more than a block of rows.
    A run's own images go through in the batches of the run's own processes (and are shared out no finer), since the
    last bits of a row may depend on its batch: they come out in the clusters that the run found.

    Args:
        run_url: the run's folder.
        root: images, anything that data.root takes.
        out: the file to write, local or any fsspec URL.
        member: this process among those that share the work.
        split: of the images; None: all.
        stage: as this stage left the run; None: as it is.
        overwrite: replace the file where it is there already.
        without: leave out the images of this split, as a run without data.split does with data.heldout_split.

    Raises:
        UsageError: no run, no final clustering yet, no such images, or the file is there already.
        RunError: a feature is not finite.
    """
    collectives = member.collectives
    storage, name = open_file(out, "--out=")
    collectives.on_main(lambda: _require_free(storage, name, overwrite))
    run = read_run(run_url, stage)
    if run.readout is None:
        raise UsageError(
            f"{run.directory} has no final clustering yet: stage {run.stage.name} has not ended; train it to its end, "
            "or name an earlier stage by --stage"
        )
    source = open_source(root, split, run.config.data.cache_directory, without)
    is_own = source.fingerprint() in run.fingerprints()
    world_size = run.world_size if is_own else collectives.world_size
    numerics = build_numerics(run.stage.train, member.device)
    numerics.place(run.backbone)
    num_workers = num_loader_processes(run.config.data, member.device)
    if num_workers > 0:
        start_server()
    loader = BatchLoader([source], num_workers, pin_memory=member.device.type == "cuda")
    start = time.monotonic()
    with closing(loader), tempfile.TemporaryDirectory(prefix="dcdist-assign-") as temporary:
        images = build_images(run.stage, numerics, loader)
        for rank in range(collectives.rank, world_size, collectives.world_size):
            part = Path(temporary) / "part.parquet"
            with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
                for table in _tables(run.backbone, run.readout, source, images, rank, world_size):
                    writer.write_table(table)
            storage.upload(part, _part(name, rank))
        collectives.barrier()
        seconds = time.monotonic() - start
        undecodable = sum(map(len, collectives.all_gather_objects(source.undecodable)))
        if not collectives.is_main:
            return None
        _merge(storage, name, world_size, Path(temporary))
        agreement = _agreement(run, storage, name) if is_own else None
    return Assigned(storage.url(name), len(source), undecodable, run.readout.num_clusters, seconds, agreement)


def _require_free(storage: Storage, name: str, overwrite: bool) -> None:
    if not name.endswith(".parquet"):
        raise UsageError(f"--out={storage.url(name)!r}: the file's name ends in .parquet")
    if not overwrite and storage.exists(name):
        raise UsageError(f"{storage.url(name)} is there already: give another --out, or --overwrite")


def _tables(
    backbone: Backbone, readout: Readout, source: ImageSource, images: ImagePass, rank: int, world_size: int
) -> Iterator[pa.Table]:
    """The images of one of `world_size` ranges, a block at a time, those included that do not decode."""
    own = contiguous_range(len(source), rank, world_size)
    block, written = _new_block(backbone, images), own.start
    for batch in feature_batches(backbone, source, images, Collectives(rank, world_size)):
        taken = 0
        while taken < len(batch.sample_ids):
            more = slice(taken, taken + ROWS_A_BLOCK - len(block.ids()))
            block.append(batch.sample_ids[more], batch.rows[more])
            taken = more.stop
            if len(block.ids()) == ROWS_A_BLOCK:
                end = int(block.ids()[-1]) + 1
                yield _table(readout, block, source, range(written, end))
                block, written = _new_block(backbone, images), end
    if written < own.stop:
        yield _table(readout, block, source, range(written, own.stop))


def _new_block(backbone: Backbone, images: ImagePass) -> RawFeatures:
    return RawFeatures(ROWS_A_BLOCK, backbone.num_features, images.memory_limit_bytes, images.numerics.device)


def _table(readout: Readout, block: RawFeatures, source: ImageSource, sample_ids: range) -> pa.Table:
    clusters = np.full(len(sample_ids), -1, np.int32)
    distances = np.full(len(sample_ids), np.nan, np.float32)
    rows = readout.rows(block)
    found, row_distances = readout.assign(rows.features)
    where = (rows.sample_ids - sample_ids.start).numpy()
    clusters[where], distances[where] = found.numpy(), row_distances.numpy()
    columns = [
        pa.array(np.arange(sample_ids.start, sample_ids.stop, dtype=np.int64)),
        pa.array([source.keys[sample_id] for sample_id in sample_ids], pa.string()),
        pa.array(np.zeros(len(sample_ids), np.int16)),
        pa.array(clusters),
        pa.array(distances),
    ]
    return pa.table(columns, schema=SCHEMA)


def _part(name: str, rank: int) -> str:
    return f"{name}.part-{rank:05}"


def _merge(storage: Storage, name: str, num_parts: int, temporary: Path) -> None:
    """One file of all parts, in their order; the parts go when it is there."""
    merged, part = temporary / "merged.parquet", temporary / "part.parquet"
    with pq.ParquetWriter(merged, SCHEMA, compression="zstd") as writer:
        for rank in range(num_parts):
            storage.download(_part(name, rank), part)
            for batch in pq.ParquetFile(part).iter_batches():
                writer.write_batch(batch)
    storage.upload(merged, name)
    for rank in range(num_parts):
        storage.remove(_part(name, rank))


def _agreement(run: StoredRun, storage: Storage, name: str) -> float | None:
    path = run.directory.assignments_file(run.stage.name, "final")
    if not run.directory.storage.exists(path):
        return None
    recorded, found = (
        pq.read_table(io.BytesIO(data), columns=["cluster"])["cluster"].to_numpy()
        for data in (run.directory.storage.read_bytes(path), storage.read_bytes(name))
    )
    return float((recorded == found).mean())
