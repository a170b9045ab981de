"""The rows as Markdown: a line a method, means and standard deviations over the seeds that are there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.methods.rows import Row

ENOUGH_SEEDS = 3
MISSING = "not measured"


@dataclass(frozen=True)
class Line:
    """A line of a table, and the rows over which it is a mean."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Column:
    """A figure of a row (None where the row has no such), and how a mean of it is written."""

    title: str
    value: Callable[[Row], float | None]
    write: Callable[[float], str] = lambda value: f"{value:.3f}"


def _of(readout: str, name: str) -> Callable[[Row], float | None]:
    return lambda row: row["figures"].get(readout, {}).get(name)


def _own(name: str) -> Callable[[Row], float | None]:
    """Of the run's own clusters; where there is no run, of the read-out that the runs have."""
    return lambda row: (row["figures"].get("final") or row["figures"].get("neighbors") or {}).get(name)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


KNN = Column("kNN", lambda row: row["figures"]["knn"])
LINEAR = Column("linear", lambda row: row["figures"]["linear"])
TIME = Column("time", lambda row: row.get("wall_seconds"), _clock)
METHODS = (
    Column("purity, train", _own("purity_train")),
    Column("ACC, test", _own("accuracy_heldout")),
    Column("NMI, train", _own("nmi_train")),
    KNN,
    LINEAR,
    TIME,
)
PRETEXTS = (Column("NMI, train", _own("nmi_train")), KNN, LINEAR, TIME)
READOUTS = tuple(
    Column(f"{title}: {score}", _of(readout, name))
    for readout, title in (("plain", "k-means"), ("whitened", "whitened"), ("neighbors", "neighbours"))
    for score, name in (("purity, train", "purity_train"), ("ACC, test", "accuracy_heldout"), ("NMI", "nmi_train"))
)


def render(lines: Sequence[Line], columns: Sequence[Column]) -> str:
    """A table: a line a method, "not measured" where it has no rows; few seeds are marked."""
    table = [
        "| | seeds | " + " | ".join(column.title for column in columns) + " |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for line in lines:
        if not line.rows:
            table.append(f"| {line.title} | {MISSING} |" + " |" * len(columns))
            continue
        cells = [_cell([column.value(row) for row in line.rows], column) for column in columns]
        table.append(f"| {line.title} | {_count(line)} | " + " | ".join(cells) + " |")
    if any(_is_marked(line) for line in lines):
        table += ["", f"\\* fewer than {ENOUGH_SEEDS} seeds"]
    return "\n".join(table)


def _is_marked(line: Line) -> bool:
    return 0 < len(line.rows) < ENOUGH_SEEDS and line.rows[0]["seed"] is not None


def _count(line: Line) -> str:
    if line.rows[0]["seed"] is None:
        return ""
    return f"{len(line.rows)}\\*" if _is_marked(line) else str(len(line.rows))


def _cell(values: Sequence[float | None], column: Column) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = column.write(statistics.fmean(known))
    if len(known) == 1 or column is TIME:
        return mean
    return f"{mean} ± {column.write(statistics.stdev(known))}"
