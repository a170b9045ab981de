"""A row of values as a row of characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Symbols:
    """What to draw with."""

    levels: str  # of a sparkline, the lowest first
    done: str
    left: str
    cut: str  # stands for text that is left out


BLOCKS = Symbols(levels="▁▂▃▄▅▆▇█", done="━", left="─", cut="…")
ASCII = Symbols(levels="_.-=+*%#", done="#", left=".", cut="~")


def sparkline(values: Sequence[float | None], width: int, symbols: Symbols, least_span: float = 0.0) -> str:
    """One character a value, from the lowest level at the least value to the highest at the largest.

    More values than characters: each character is the mean of its share of them. A value that is None is a blank. Where
    all values are the same they are in the middle.

    Args:
        values: the oldest first.
        width: characters at most.
        symbols: what to draw with.
        least_span: of the scale; where the values differ by less they are in its middle.
    """
    num = min(width, len(values))
    means = [_mean(values[len(values) * k // num : len(values) * (k + 1) // num]) for k in range(num)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return " " * num
    low, span = min(known), max(known) - min(known)
    if 0 < span <= least_span:
        low, span = low - (least_span - span) / 2, least_span
    return "".join(" " if mean is None else _level(mean - low, span, symbols.levels) for mean in means)


def bar(ratio: float, width: int, symbols: Symbols) -> tuple[str, str]:
    """The done and the other part of a progress bar; it is full at a ratio of 1 alone."""
    num = width if ratio >= 1 else min(int(width * max(ratio, 0.0)), width - 1)
    return symbols.done * num, symbols.left * (width - num)


def _level(height: float, span: float, levels: str) -> str:
    if span <= 0:
        return levels[len(levels) // 2 - 1]
    return levels[min(int(height / span * len(levels)), len(levels) - 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
