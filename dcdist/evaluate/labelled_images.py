"""The labelled images that a run is measured on: its own, or others that a person names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dcdist.build.run import open_data, open_training_images
from dcdist.data.loader import BatchLoader
from dcdist.data.loader_processes import start_server
from dcdist.data.source import ImageSource
from dcdist.devices import num_loader_processes
from dcdist.errors import UsageError
from dcdist.evaluate.measured import DataOptions
from dcdist.stored_run import StoredRun

NO_SPLIT = "none"


@dataclass(frozen=True)
class LabelledImages:
    """Images that teach, vote or are clustered, and maybe others that are held out; all have labels."""

    root: str
    split: str | None
    heldout_split: str | None
    source: ImageSource
    heldout: ImageSource | None

    def are_those_of(self, run: StoredRun) -> bool:
        """Whether the run was trained on `source`."""
        return self.source.fingerprint() in run.fingerprints()

    def describe(self, run: StoredRun) -> dict[str, Any]:
        """For a report."""
        of_the_run = {"of_the_run": self.are_those_of(run)}
        return {
            "data": {**of_the_run, **_describe(self.source, self.root, self.split)},
            "heldout": self.heldout and _describe(self.heldout, self.root, self.heldout_split),
            "label_names": self.source.label_names,
        }


def images_line(report: Any) -> str:
    """What was measured on, for the first line on the terminal."""
    data = report["data"]
    others = "" if data["of_the_run"] else ", not those that the run was trained on"
    return f"{data['num_labelled']} labelled images of {data['root']}{others}"


def open_labelled(run: StoredRun, options: DataOptions) -> LabelledImages:
    """Opens what was asked for, by default what the run was trained on and what it kept out.

    Raises:
        UsageError: no such images or split, one split for both, or they have no labels.
    """
    data = run.config.data
    root = options.data or data.root
    split, heldout_split = _chosen(options.split, data.split), _chosen(options.heldout_split, data.heldout_split)
    if split is not None and split == heldout_split:
        raise UsageError(
            f"split {split!r} cannot teach and be held out: name another by --split or --heldout-split, or "
            f"--heldout-split {NO_SPLIT}"
        )
    # By default the run's own images, even where no images are held out here.
    left_out = data.heldout_split if heldout_split is None and options.split is None else heldout_split
    section = data.model_copy(update={"root": root, "split": split, "heldout_split": left_out})
    source = _with_labels(open_training_images(section), f"{root}{_named(split)}", "")
    heldout = None
    if heldout_split is not None:
        instead = f", or --heldout-split {NO_SPLIT}"
        heldout = _with_labels(open_data(section, heldout_split), f"{root}{_named(heldout_split)}", instead)
    return LabelledImages(root, split, heldout_split, source, heldout)


@contextmanager
def open_loader(run: StoredRun, images: LabelledImages, device: torch.device) -> Iterator[BatchLoader]:
    """Loads them as training would, in processes that end with the block."""
    num_workers = num_loader_processes(run.config.data, device)
    if num_workers > 0:
        start_server()
    sources = [images.source] if images.heldout is None else [images.source, images.heldout]
    loader = BatchLoader(sources, num_workers, pin_memory=device.type == "cuda")
    try:
        yield loader
    finally:
        loader.close()


def _describe(source: ImageSource, root: str, split: str | None) -> dict[str, Any]:
    assert source.labels is not None
    return {
        "root": root,
        "split": split,
        "num_images": len(source),
        "num_labelled": int((source.labels >= 0).sum()),
        "num_undecodable": len(source.undecodable),
        "fingerprint": source.fingerprint(),
    }


def _chosen(given: str | None, default: str | None) -> str | None:
    return default if given is None else None if given == NO_SPLIT else given


def _named(split: str | None) -> str:
    return "" if split is None else f", split {split}"


def _with_labels(source: ImageSource, name: str, instead: str) -> ImageSource:
    if source.labels is None or not (source.labels >= 0).any():
        raise UsageError(
            f"{name} has no labels, and features are scored against labels: give images that have them by --data "
            f"(a folder a class, or Parquet with a column label){instead}"
        )
    return source
