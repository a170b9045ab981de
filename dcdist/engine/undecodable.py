"""How images that do not decode are told of, whatever split they are of."""

from __future__ import annotations

from collections.abc import Mapping

from dcdist.data.source import ImageSource

_NAMED = 10


def describe_undecodable(source: ImageSource, failures: Mapping[int, str], split: str | None = None) -> str:
    """How many, and the first ones by name with the reason.

    Args:
        source: the images.
        failures: reason by sample_id, not empty.
        split: the split that the images are held out by; None of training images.
    """
    which = "" if split is None else f" of the held-out split {split!r}"
    return f"{len(failures)} of {len(source)} images{which} do not decode: {name_some(source, failures)}"


def name_some(source: ImageSource, failures: Mapping[int, str]) -> str:
    """The first ones by name with the reason, and how many more."""
    named = [f"{source.keys[sample_id]} ({failures[sample_id]})" for sample_id in sorted(failures)]
    return "; ".join(named[:_NAMED]) + (f"; and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
