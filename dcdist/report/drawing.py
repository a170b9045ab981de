"""Charts as SVG: text stays text, so that it is legible at every width and can be searched; no date, no random id.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; heat maps are of one hue.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, NullFormatter

from dcdist.report.blocks import Chart, HeatMap, LineChart, StackedBars, TimeLine

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F", "#7F7F7F")
_ENDINGS = {"preempted": "#E69F00", "stopped": "#CC79A7", "failed": "#D55E00", "killed": "#000000", "done": "#009E73"}
_WIDTH = 4.0  # inches: a phone's width at 96 pixels an inch, less its margins
_HEIGHT = 2.7
_STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "dcdist",
    "text.parse_math": False,  # names of a run may hold dollar signs
}
_FEW_POINTS = 30  # so many have a marker each: a single point would not be seen
_LETTERS_OF_CLASSES = 40  # side by side above a heat map
_FEW_RESTARTS = 12  # more of them would hide the phases
_LETTERS = 56  # side by side in a chart's width
_WIDEST_NAME = 36  # letters of a line in the legend
_WIDEST_LANE = 26
_WIDEST_CLASS = 18

Limits = tuple[float, float, float, float]  # least and largest x, least and largest y


def joint_limits(chart: LineChart, others: Sequence[LineChart]) -> Limits | None:
    """What a chart has to cover to be compared with others, itself among them; None where it shows nothing."""
    if chart.extent() is None:
        return None
    alike = [other for other in others if other.key == chart.key]
    of_x = [extent for other in alike if (extent := other.extent()) is not None]
    of_y = [extent for other in alike if other.unit == chart.unit and (extent := other.extent()) is not None]
    return min(e[0] for e in of_x), max(e[1] for e in of_x), min(e[2] for e in of_y), max(e[3] for e in of_y)


def draw(chart: Chart, prefix: str, limits: Limits | None = None) -> Markup:
    """A chart as an SVG element.

    Args:
        chart: what to draw.
        prefix: of every id in it: several of them are on a page.
        limits: of the axes of a line chart, where others are to be compared with it; by default its own.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has others
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        match chart:
            case LineChart():
                _draw_lines(axes, chart, limits or chart.extent())
            case StackedBars():
                _draw_bars(axes, chart)
            case HeatMap():
                _draw_heat_map(figure, axes, chart)
            case TimeLine():
                _draw_time_line(figure, axes, chart)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _embeddable(sink.getvalue(), prefix, chart.title)


def _draw_lines(axes: Axes, chart: LineChart, limits: Limits | None) -> None:
    for number, band in enumerate(chart.bands):
        shade = (0.15, 0.3)[min(number, 1)]
        axes.fill_between(
            band.x, band.low, band.high, color=PALETTE[0], alpha=shade, linewidth=0, label=_short(band.name)
        )
    for line in chart.lines:
        axes.plot(
            *(line.x, line.y),
            color=PALETTE[line.colour % len(PALETTE)],
            alpha=0.35 if line.faint else 1.0,
            linewidth=0.9 if line.faint else None,
            marker="o" if len(line.x) <= _FEW_POINTS and not line.faint else None,
            markersize=3,
            label=_short(line.name) or None,
        )
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    if limits is not None:
        _set_limits(axes, chart, limits)
    if not chart.log_x:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    for axis, is_log in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y)):
        axis.set_major_formatter(FuncFormatter(_power) if is_log else _Digits())
        if is_log:
            axis.set_minor_formatter(NullFormatter())
    _label(axes, chart.x_label, chart.y_label)
    if sum(1 for line in chart.lines if line.name) + len(chart.bands) > 1:
        _legend(axes)


def _set_limits(axes: Axes, chart: LineChart, limits: Limits) -> None:
    x_low, x_high, y_low, y_high = limits
    if chart.log_x:
        axes.set_xlim(x_low / 1.1, x_high * 1.1)
    else:
        x_low, x_high = min(x_low, 0.0), max(x_high, 1.0)  # epochs and ranks begin at 0, in all charts alike
        margin = 0.03 * (x_high - x_low)
        axes.set_xlim(x_low - margin, x_high + margin)
    if chart.log_y:
        axes.set_ylim(y_low / 1.3, y_high * 1.3)
        return
    margin = 0.06 * (y_high - y_low) or 0.06 * abs(y_high) or 0.5
    low = y_low - margin if chart.lowest is None else min(chart.lowest, y_low)
    high = y_high + margin if chart.highest is None else max(chart.highest, y_high)
    axes.set_ylim(low, high + 0.02 * (high - low))


def _draw_bars(axes: Axes, chart: StackedBars) -> None:
    below = np.zeros(len(chart.edges) - 1)
    widths = np.diff(chart.edges)
    for part in chart.parts:
        left, colour = chart.edges[:-1] + 0.05 * widths, PALETTE[part.colour % len(PALETTE)]
        axes.bar(
            left, part.heights, 0.9 * widths, below, align="edge", color=colour, linewidth=0, label=_short(part.name)
        )
        below = below + part.heights
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(_Digits())
    axes.yaxis.set_major_formatter(_Digits())
    axes.grid(visible=False, axis="x")
    margin = 0.02 * float(chart.edges[-1] - chart.edges[0])
    axes.set_xlim(chart.edges[0] - margin, chart.edges[-1] + margin)
    _label(axes, chart.x_label, chart.y_label)
    if len(chart.parts) > 1:
        _legend(axes)


def _draw_heat_map(figure: Figure, axes: Axes, chart: HeatMap) -> None:
    rows, columns = chart.counts.shape
    row_names = [_short(name, _WIDEST_CLASS) for name in chart.row_names]
    column_names = [_short(name, _WIDEST_CLASS) for name in chart.column_names]
    longest = max(map(len, column_names))
    is_turned = columns * (longest + 2) > _LETTERS_OF_CLASSES
    figure.set_size_inches(_WIDTH, 0.9 + 0.19 * max(rows, 3) + 0.07 * longest * is_turned)
    shares = chart.counts / np.maximum(chart.row_totals, 1)[:, None]
    darkest = 1.0 if shares.max() > 0.5 else float(shares.max())  # clusters of many classes would be white
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=darkest, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(columns), column_names)
    axes.set_yticks(range(rows), row_names)
    axes.xaxis.set_ticks_position("top")
    for label in axes.get_xticklabels() if is_turned else ():
        label.set(rotation=60, rotation_mode="anchor", horizontalalignment="left", verticalalignment="center")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_ylabel(chart.row_label)
    if columns <= 10 and chart.counts.max(initial=0) < 100_000:
        size = 9 if columns <= 6 else 8
        for row, column in np.argwhere(chart.counts):
            colour = "white" if shares[row, column] > 0.72 * darkest else "black"
            count = f"{chart.counts[row, column]:,}"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=size)
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=30, pad=0.05)
    bar.set_label("share of the cluster's images")
    bar.outline.set_visible(False)


def _draw_time_line(figure: Figure, axes: Axes, chart: TimeLine) -> None:
    figure.set_size_inches(_WIDTH, 1.0 + 0.24 * len(chart.lanes) + 0.2 * bool(chart.restarts))
    unit, name = _time_unit(chart.seconds)
    least = chart.seconds / unit / 400  # what is shorter would not be seen
    for lane, named in enumerate(chart.lanes):
        busy = [segment for segment in chart.segments if segment.lane == lane]
        bars = [(s.start / unit, max((s.stop - s.start) / unit, least)) for s in busy]
        axes.broken_barh(bars, (lane - 0.38, 0.76), facecolors=PALETTE[named.colour % len(PALETTE)], linewidth=0)
    for restart in chart.restarts:
        width = 1.2 if len(chart.restarts) <= _FEW_RESTARTS else 0.6
        axes.axvline(restart.at / unit, color=_ENDINGS[restart.ending], linewidth=width, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(chart.lanes)), [_short(lane.name, _WIDEST_LANE) for lane in chart.lanes])
    axes.set_ylim(len(chart.lanes) - 0.5, -0.5)
    axes.set_xlim(0.0, max(chart.seconds / unit, 1e-6))
    axes.xaxis.set_major_formatter(_Digits())
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"time running, {name}")
    endings = dict.fromkeys(restart.ending for restart in chart.restarts)
    if endings:
        handles = [Patch(facecolor=_ENDINGS[ending], label=f"{ending}, started again") for ending in endings]
        _legend(axes, handles)


def _time_unit(seconds: float) -> tuple[float, str]:
    units = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
    return next(((unit, name) for unit, name in units if seconds >= 2 * unit), (1.0, "seconds"))


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(_short(x_label))
    axes.set_ylabel(_short(y_label))


def _legend(axes: Axes, handles: list[Patch] | None = None) -> None:
    """Above the axes, where it hides nothing; as many columns as the chart is wide."""
    found = handles if handles is not None else axes.get_legend_handles_labels()[0]
    longest = max(len(str(handle.get_label())) for handle in found) + 6
    columns = max(1, _LETTERS // longest)
    columns = min(columns, len(found))
    axes.legend(handles=found, ncols=columns, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)


class _Digits(Formatter):
    """Ticks of a linear axis, with as many digits as tell them apart."""

    def __init__(self) -> None:
        self._decimals = 0

    def set_locs(self, locs: Any) -> None:
        steps = np.diff(np.sort(np.asarray(locs, float)))
        step = float(steps[steps > 0].min(initial=np.inf))
        fitting = (d for d in range(9) if abs(round(step, d) - step) < 1e-3 * step)
        self._decimals = next(fitting, 9) if np.isfinite(step) else 0

    def __call__(self, x: float, pos: int | None = None) -> str:  # noqa: ARG002
        if abs(x) >= 1e8:
            return f"{x:.3g}"
        text = f"{x:,.{self._decimals}f}"
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def _power(value: float, _: int | None = None) -> str:
    """Ticks of a logarithmic axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _short(name: str, widest: int = _WIDEST_NAME) -> str:
    """A name as far as there is room, of letters that can be drawn."""
    drawn = "".join(letter if letter.isprintable() else "\ufffd" for letter in name[: widest + 1])
    return drawn if len(drawn) <= widest else f"{drawn[: widest - 1]}…"


def _embeddable(svg: str, prefix: str, description: str) -> Markup:
    """The <svg> element alone, its size left to the page, its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = Markup.escape(description)
    return Markup(f'{head} role="img" aria-label="{label}">{rest}')  # matplotlib escapes what it writes
