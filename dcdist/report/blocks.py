"""What a section of the report is made of: data without appearance. `drawing` makes pictures of the charts.

Shapes: P points, E epochs, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Ending = Literal["preempted", "stopped", "failed", "killed", "done"]


@dataclass(frozen=True)
class Line:
    """A curve. Faint ones stay in the background; `colour` is its place in the palette."""

    name: str  # for the legend; empty: not in it
    x: FloatArray  # [P]
    y: FloatArray  # [P]
    colour: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    name: str
    x: FloatArray  # [P]
    low: FloatArray  # [P]
    high: FloatArray  # [P]


@dataclass(frozen=True)
class LineChart:
    """Curves over a common axis.

    Charts of several runs with the same `key` get the same range of x; those with the same `unit` as well, of y.
    """

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    bands: tuple[Band, ...] = ()
    log_x: bool = False
    log_y: bool = False
    lowest: float | None = None  # of the y axis, where that is given
    highest: float | None = None
    unit: str = ""

    def extent(self) -> tuple[float, float, float, float] | None:
        """Least and largest x, least and largest y of what is shown; None where nothing is."""
        curves = [(line.x, line.y) for line in self.lines]
        curves += [(band.x, side) for band in self.bands for side in (band.low, band.high)]
        x = np.concatenate([x for x, _ in curves]) if curves else np.zeros(0)
        y = np.concatenate([y for _, y in curves]) if curves else np.zeros(0)
        return (float(x.min()), float(x.max()), float(y.min()), float(y.max())) if len(x) else None


@dataclass(frozen=True)
class Part:
    """What all bars have a piece of; `colour` is its place in the palette."""

    name: str
    heights: FloatArray  # [P]
    colour: int = 0


@dataclass(frozen=True)
class StackedBars:
    """Bars along an axis, each of parts on top of each other."""

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    edges: FloatArray  # [P + 1]
    parts: tuple[Part, ...]  # the lowest first


@dataclass(frozen=True)
class HeatMap:
    """Counts as a table of coloured cells; the colour is a cell's share of its row."""

    title: str
    caption: str
    counts: NDArray[np.int64]  # [R, C]
    row_totals: NDArray[np.int64]  # [R]; more than the sum of a row where columns are left out
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    row_label: str
    column_label: str


@dataclass(frozen=True)
class Lane:
    """A thing that a run spends time with; `colour` is its place in the palette."""

    name: str
    colour: int


@dataclass(frozen=True)
class Segment:
    """Some time that a lane was busy: seconds of running since the run began."""

    lane: int
    start: float
    stop: float


@dataclass(frozen=True)
class Restart:
    """Where one attempt ended and the next began."""

    at: float  # seconds of running since the run began
    ending: Ending


@dataclass(frozen=True)
class TimeLine:
    """What a run did when; waits between attempts are left out."""

    title: str
    caption: str
    lanes: tuple[Lane, ...]
    segments: tuple[Segment, ...]
    restarts: tuple[Restart, ...]
    seconds: float  # in all


Chart = LineChart | StackedBars | HeatMap | TimeLine


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Sentence:
    """Plain words, also in place of what is not there. `warns` where something is wrong."""

    text: str
    warns: bool = False


@dataclass(frozen=True)
class Folded:
    """Behind a line that opens it: a long text or blocks that few will read."""

    summary: str
    text: str = ""
    blocks: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Thumbnail:
    """A small picture; `source` is a data URI."""

    source: str
    description: str
    is_of_other_class: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures of one cluster."""

    title: str
    caption: str
    rows: tuple[tuple[str, tuple[Thumbnail, ...]], ...]  # a heading, its pictures


Block = Chart | Table | Sentence | Folded | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the report: the blocks of each run, in the order of the runs."""

    anchor: str
    title: str
    introduction: str
    columns: tuple[tuple[Block, ...], ...]
    common: tuple[Block, ...] = field(default=())  # of all runs together


def blocks_or(blocks: Sequence[Block], otherwise: str) -> tuple[Block, ...]:
    """The blocks, or a sentence that says why there are none."""
    return tuple(blocks) or (Sentence(otherwise),)
