"""Writes a run's network into one file that other programs load without dcdist, and a card beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save

from dcdist.errors import UsageError
from dcdist.export.card import describe_run
from dcdist.export.onnx_file import onnx_bytes, require_onnx
from dcdist.filesystems import StorageError
from dcdist.models.published_names import published_names
from dcdist.storage import open_file
from dcdist.stored_run import StoredRun, read_run

SAFETENSORS, ONNX = ".safetensors", ".onnx"
CARD_KEY = "dcdist"  # of the card as JSON within the files, in the metadata of each format


def _safetensors_bytes(run: StoredRun, card: str) -> bytes:
    names = published_names(run.config.model.name, run.backbone)
    tensors = {names[key]: tensor.contiguous() for key, tensor in run.backbone.state_dict().items()}
    return save(tensors, {CARD_KEY: card})  # one entry: several are written in random order


def _onnx_bytes(run: StoredRun, card: str) -> bytes:
    return onnx_bytes(run.backbone, run.stage.views.image_size, {CARD_KEY: card})


WRITERS: dict[str, Callable[[StoredRun, str], bytes]] = {SAFETENSORS: _safetensors_bytes, ONNX: _onnx_bytes}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    file: str
    num_bytes: int
    card_file: str
    card: Mapping[str, Any]

    def lines(self) -> list[str]:
        """For the terminal: the files, and who can load the weights."""
        architecture, features = self.card["architecture"], self.card["features"]
        libraries = [name for name in ("torchvision", "timm") if architecture[name] and self.file.endswith(SAFETENSORS)]
        loadable = f", loadable by {' and '.join(libraries)}" if libraries else ""
        return [
            f"{self.file}: {self.num_bytes / 1e6:.1f} MB, {architecture['name']}, images of "
            f"{self.card['normalization']['image_size']} pixels to {features['dimension']} features{loadable}",
            f"{self.card_file}: the card",
        ]


def export(url: str, out: str, stage: str | None = None, overwrite: bool = False) -> Exported:
    """Writes the network of a run's newest whole checkpoint to `out`, and its card beside it as .json.

    The same run gives the same bytes; its scores, in the card, are those that it has by then.

    Args:
        url: the run's folder, local or any fsspec URL.
        out: a file, local or any fsspec URL, whose suffix says the format: one of WRITERS.
        stage: the network as this stage left it; None: as it is.
        overwrite: replace files that are there already. A card of the same network never is in the way.

    Raises:
        UsageError: another suffix, a file that exists, no run, no checkpoint, a package that is missing.
        RunError: no checkpoint is whole, or the network cannot be written in this format.
    """
    storage, name = open_file(out, "--out=")
    suffix = next((known for known in WRITERS if name.endswith(known) and name != known), None)
    if suffix is None:
        raise UsageError(f"--out={out!r}: the suffix says the format, it is one of {', '.join(WRITERS)}")
    if suffix == ONNX:
        require_onnx(out)
    with _at(out):
        if storage.exists(name) and not overwrite:
            raise UsageError(f"{out} exists: give another --out, or --overwrite to replace it")
    run = read_run(url, stage)
    card = describe_run(run)
    card_name, card_bytes = f"{name.removesuffix(suffix)}.json", json.dumps(card, indent=1).encode() + b"\n"
    card_file = storage.url(card_name)
    if not overwrite and storage.exists(card_name) and not _describes(storage.read_bytes(card_name), card):
        raise UsageError(f"{card_file} exists and describes something else: give another --out, or --overwrite")
    run.backbone.eval()
    content = WRITERS[suffix](run, json.dumps(card))
    with _at(out):
        storage.write_bytes(name, content)
        storage.write_bytes(card_name, card_bytes)
    return Exported(storage.url(name), len(content), card_file, card)


def _describes(existing: bytes, card: Mapping[str, Any]) -> bool:
    """Whether a card is of the same network; an evaluation since then may have added scores."""
    try:
        other = json.loads(existing)
    except ValueError:
        return False
    return isinstance(other, dict) and {**other, "scores": None} == {**json.loads(json.dumps(card)), "scores": None}


@contextlib.contextmanager
def _at(out: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise UsageError(f"--out={out!r} cannot be written: {error}") from error
