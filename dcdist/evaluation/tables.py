"""Aligned tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: header, rule, rows; the first column to the left, figures to the right.

    A column that holds "-" in every row is left out.
    """
    used = [column for column in zip(header, *rows, strict=True) if any(cell != "-" for cell in column[1:])]
    widths = [max(map(len, column)) for column in used]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in zip(*used, strict=True)
    ]
    lines = [line.rstrip() for line in lines]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def figure(value: float | None) -> str:
    """Three digits, "-" for what was not measured."""
    return "-" if value is None else f"{value:.3f}"
