"""The images that the report shows: RUN/examples.parquet, made from the data where that can be reached."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdist.errors import DcdistError
from dcdist.report.clusterings import UNREADABLE
from dcdist.report.history import History
from dcdist.run_directory import RunDirectory

if TYPE_CHECKING:
    from dcdist.data.types import ImageSource

logger = logging.getLogger(__name__)

EXAMPLES = "examples.parquet"
SIDE = 96  # pixels: what a thumbnail fits in
MOST_TO_PACK_GIB = 4.0  # data without random access is copied into the cache first: not more than this unasked
_SCHEMA = pa.schema([("sample_id", pa.int64()), ("thumbnail", pa.binary())])
_LABEL_NAMES = b"label_names"


@dataclass(frozen=True)
class Examples:
    """Thumbnails by sample_id, encoded as WebP; None where an image does not decode."""

    thumbnails: Mapping[int, bytes | None]
    label_names: list[str] | None = None
    remark: str = ""  # a sentence on what is missing and why


def find_examples(
    run: RunDirectory, history: History, wanted: Sequence[int], data: Mapping[str, Any], root: str | None = None
) -> Examples:
    """The thumbnails of some images: those that the run has, else made from the data and written into the run.

    An image of a sample_id is the same for every clustering, so what is there is never out of date.

    Args:
        run: its folder; one that cannot be written to costs a warning.
        history: of the run, which says what its data were.
        wanted: sample_ids.
        data: the section of the config.
        root: where the data lie here; by default where the config says.
    """
    kept = _read(run)
    if set(wanted) <= set(kept.thumbnails):
        return kept
    try:
        source = _open(data, root)
        _refuse_others(source, history, root or str(data.get("root")))
    except (DcdistError, OSError) as error:
        have = sum(1 for sample_id in wanted if kept.thumbnails.get(sample_id))
        shown = f"Only the {have} that {EXAMPLES} holds are shown" if have else "They are not shown"
        remedy = "" if root else " Name the place where the data lie here by --data."
        return Examples(
            kept.thumbnails, kept.label_names, f"{shown}: the run's images cannot be read. {error}.{remedy}"
        )
    thumbnails = {sample_id: _thumbnail(source, sample_id) for sample_id in sorted(set(wanted))}
    made = Examples(thumbnails, source.label_names)
    try:
        run.storage.write_bytes(EXAMPLES, _to_parquet(made))
    except OSError as error:
        logger.warning("%s is not written: %s", run.storage.url(EXAMPLES), error)
    return made


def _read(run: RunDirectory) -> Examples:
    """What the run has; nothing where the file is missing or damaged."""
    try:
        table = pq.read_table(pa.BufferReader(run.storage.read_bytes(EXAMPLES)))
        names = json.loads((table.schema.metadata or {}).get(_LABEL_NAMES, b"null"))
        thumbnails = dict(zip(table["sample_id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))
        return Examples(thumbnails, names if isinstance(names, list) else None)
    except UNREADABLE:
        return Examples({})


def _to_parquet(examples: Examples) -> bytes:
    columns = [pa.array(list(examples.thumbnails), pa.int64()), pa.array(examples.thumbnails.values(), pa.binary())]
    schema = _SCHEMA.with_metadata({_LABEL_NAMES: json.dumps(examples.label_names).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def _open(data: Mapping[str, Any], root: str | None) -> ImageSource:
    """Raises DcdistError or OSError where the data are not here, or would have to be copied and are large."""
    from dcdist.data.source import bytes_to_pack, open_source

    place = root or data.get("root")
    if not place:
        raise DcdistError("The run's config does not say where they lie")
    where = str(place), data.get("split"), data.get("cache_directory"), data.get("heldout_split")
    gib = 0.0 if root is not None else bytes_to_pack(*where) / 2**30
    if gib > MOST_TO_PACK_GIB:
        raise DcdistError(f"{place} has {gib:.0f} GiB that would have to be packed into the cache first")
    return open_source(*where)


def _refuse_others(source: ImageSource, history: History, place: str) -> None:
    """A sample_id means the same image only in the data that the run was trained on."""
    known = [attempt.description.get("data") for attempt in history.attempts]
    trained_on = next((found for found in reversed(known) if isinstance(found, dict)), None)
    if trained_on is None:
        raise DcdistError("No attempt says which data the run was trained on")
    if trained_on.get("num_images") != len(source) or trained_on.get("fingerprint") != source.fingerprint():
        raise DcdistError(f"{place} holds other images than those that the run was trained on")


def _thumbnail(source: ImageSource, sample_id: int) -> bytes | None:
    """None where the image does not decode or is not there any more."""
    from PIL import Image

    from dcdist.data.decode import UndecodableImage, decode_image

    try:
        image = Image.fromarray(decode_image(source.read(sample_id)))
    except (UndecodableImage, DcdistError, OSError, IndexError):
        return None
    is_tiny = max(image.size) <= SIDE // 2
    image.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    image.save(sink, "WEBP", lossless=is_tiny, quality=80)  # small pictures would show the losses, and cost little
    return sink.getvalue()
