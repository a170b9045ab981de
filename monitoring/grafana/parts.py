"""What the dashboards are made of: a panel is a title, what to look for, queries, a unit and thresholds.

In a query a bare name in a selector is that variable of the dashboard: `dcdist_loss{run, stage}` is
`dcdist_loss{run=~"$run", stage=~"$stage"}`. Each start of a run is a new target with its own `instance`, so queries
aggregate by run and lines go through a restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "dcdist"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24

IMAGES_PER_SECOND = "suffix: img/s"
SHARE = "percentunit"
SECONDS = "s"
DURATION = "dtdurations"
BYTES = "bytes"
COUNT = "short"
RATIO = "none"

DASHBOARDS = {
    "dcdist-fleet": "dcdist / Fleet",
    "dcdist-run": "dcdist / Run",
    "dcdist-clusters": "dcdist / Clusters",
    "dcdist-resources": "dcdist / Resources",
}

# A run whose target is gone keeps its last value: finished (1 or 3) or not seen any more (2); 0 is running.
STATE = "max by (run) (dcdist_finished{run}) or (2 + max by (run) (last_over_time(dcdist_finished{run}[$__range])))"

PROGRESS = """
    max by (run, stage) (dcdist_progress_steps{run, stage}) / max by (run, stage) (dcdist_target_steps{run, stage})
"""
STAGES = "max by (run) (dcdist_progress_stages{run}) / max by (run) (dcdist_target_stages{run})"
# At the pace of the last hour: clusterings, checkpoints and restarts are in it.
REMAINING = """
    (max by (run, stage) (dcdist_target_steps{run, stage}) - max by (run, stage) (dcdist_progress_steps{run, stage}))
    / (deriv(max by (run, stage) (dcdist_progress_steps{run, stage})[1h:1m]) > 0)
"""
IMAGES = "sum by (run) (rate(dcdist_samples_total{run}[$__rate_interval]))"
# Of the node that waits most; nothing while no steps are done. The wait is counted once a minute: over
# $__rate_interval, a minute or so, its rate would jump or be missing.
WAIT_INTERVAL = "5m"
DATA_WAIT = f"""
    max by (run) (sum by (run, node) (rate(dcdist_data_wait_seconds_total{{run}}[{WAIT_INTERVAL}])))
    / (sum by (run) (rate(dcdist_step_duration_seconds_sum{{run}}[{WAIT_INTERVAL}])) > 0)
"""
COMMIT_AGE = """
    time() - max by (run) (dcdist_checkpoint_last_commit_timestamp_seconds{run})
    unless on (run) max by (run) (dcdist_finished{run}) == 1
"""
COMMIT_INTERVALS = f"({COMMIT_AGE}) / max by (run) (dcdist_checkpoint_interval_seconds{{run}})"
SILENT = """
    time() - max by (run) (dcdist_progress_timestamp_seconds{run})
    unless on (run) max by (run) (dcdist_finished{run}) == 1
"""
# The one of a target that is down has no run.
ALERTS = """
    count by (run) (ALERTS{alertname=~"Dcdist.*", run, run!="", alertstate="firing"})
    or 0 * max by (run) (dcdist_build_info{run})
"""

STATES = {
    "0": ("running", "green"),
    "1": ("finished", "blue"),
    "2": ("not seen", "red"),
    "3": ("finished", "blue"),
}

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel | statetimeline.Panel
Builder = TypeVar("Builder", timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel, statetimeline.Panel)


@dataclass(frozen=True)
class Thresholds:
    """Colours by value: each holds from its limit to the next; the first has none."""

    steps: tuple[tuple[float | None, str], ...]


@dataclass(frozen=True)
class Board:
    """A dashboard: rows of panels by the title of the row."""

    uid: str
    about: str
    variables: tuple[str, ...]
    rows: Mapping[str, Sequence[Panel]]
    time_from: str = "now-6h"


NO_THRESHOLDS = Thresholds(((None, "blue"),))


def below(limit: float) -> Thresholds:
    return Thresholds(((None, "green"), (limit, "red")))


def above(limit: float) -> Thresholds:
    return Thresholds(((None, "red"), (limit, "green")))


def between(low: float, high: float) -> Thresholds:
    return Thresholds(((None, "red"), (low, "green"), (high, "red")))


def expand(expression: str) -> str:
    """PromQL with bare names in selectors written out: {run, le="1"} is {run=~"$run", le="1"}."""

    def selector(match: re.Match[str]) -> str:
        parts = [part.strip() for part in match[1].split(",")]
        return "{" + ", ".join(part if "=" in part else f'{part}=~"${part}"' for part in parts) + "}"

    return re.sub(r"\{([^{}]+)\}", selector, " ".join(expression.split()))


def target(expression: str, legend: str = "", ref_id: str = "A") -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(expand(expression)).ref_id(ref_id)
    return query.legend_format(legend) if legend else query


def thresholds_config(thresholds: Thresholds) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=limit, color=color) for limit, color in thresholds.steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def described(
    panel: Builder, title: str, look_for: str, unit: str, thresholds: Thresholds, width: int, height: int
) -> Builder:
    """What all panels have."""
    panel.title(title).description(" ".join(look_for.split())).datasource(SOURCE).span(width).height(height)
    panel.unit(unit).thresholds(thresholds_config(thresholds))
    return panel


def line(
    title: str,
    look_for: str,
    queries: Sequence[tuple[str, str]],
    unit: str,
    thresholds: Thresholds = NO_THRESHOLDS,
    *,
    width: int = 8,
    height: int = 8,
    minimum: float | None = None,
    maximum: float | None = None,
    logarithmic: bool = False,
    stacked: bool = False,
) -> timeseries.Panel:
    """Lines over time; dashed lines where the thresholds are. A query is an expression and the legend of its lines."""
    panel = described(timeseries.Panel(), title, look_for, unit, thresholds, width, height)
    for ref_id, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(target(expression, legend, ref_id).range())
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    panel.line_width(1).show_points(common_models.VisibilityMode.AUTO).span_nulls(False)
    panel.fill_opacity(60 if stacked else 0)
    if len(thresholds.steps) > 1:
        dashed = common_models.GraphThresholdsStyleMode.DASHED
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(dashed))
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if logarithmic:
        log = common_models.ScaleDistribution.LOG
        panel.scale_distribution(common.ScaleDistributionConfig().type(log).log(2))
    if minimum is not None:
        panel.min(minimum)
    if maximum is not None:
        panel.max(maximum)
    shown = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull"])
    panel.legend(
        shown.display_mode(common_models.LegendDisplayMode.TABLE).placement(common_models.LegendPlacement.BOTTOM)
    )
    multi = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    return panel.tooltip(multi.sort(common_models.SortOrder.DESCENDING))


def value(
    title: str,
    look_for: str,
    expression: str,
    unit: str,
    thresholds: Thresholds = NO_THRESHOLDS,
    *,
    legend: str = "{{run}}",
    width: int = 3,
    states: dict[str, tuple[str, str]] | None = None,
) -> stat.Panel:
    """The newest value as a number in colour; `states` are texts and colours for values."""
    panel = described(stat.Panel(), title, look_for, unit, thresholds, width, 4)
    panel.with_target(target(expression, legend).instant())
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if states:
        panel.mappings([mapping(states)])
    return panel.color_mode(common_models.BigValueColorMode.VALUE).graph_mode(common_models.BigValueGraphMode.NONE)


def timeline(title: str, look_for: str, expression: str, legend: str, *, width: int = 12) -> statetimeline.Panel:
    """When each series was there."""
    panel = described(statetimeline.Panel(), title, look_for, RATIO, NO_THRESHOLDS, width, 8)
    panel.with_target(target(expression, legend).range()).mappings([mapping({"1": ("in it", "blue")})])
    panel.fill_opacity(70).line_width(0)
    return panel.show_value(common_models.VisibilityMode.NEVER).legend(
        common.VizLegendOptions().show_legend(False).calcs([])
    )


def heat(
    title: str, look_for: str, expression: str, unit: str, cell_unit: str, *, width: int = 24, repeat: str = ""
) -> heatmap.Panel:
    """Counts by time and bucket; `expression` is cumulative over `le`, as buckets of Prometheus are."""
    panel = described(heatmap.Panel(), title, look_for, cell_unit, NO_THRESHOLDS, width, 10)
    panel.with_target(target(expression, "{{le}}").range().format(PromQueryFormat.HEATMAP))
    color = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges")
    color.scale(heatmap_models.HeatmapColorScale.EXPONENTIAL).exponent(0.5).steps(64)
    panel.calculate(False).color(color).y_axis(heatmap.YAxisConfig().unit(unit)).show_legend()
    # Empty buckets stay blank.
    panel.filter_values(heatmap.FilterValueRange().le(1e-9)).show_y_histogram()
    panel.scale_distribution(common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LINEAR))
    return panel.repeat(repeat).repeat_direction("h").max_per_row(2) if repeat else panel


@dataclass(frozen=True)
class Column:
    """Of a table: an expression with one value for each row."""

    title: str
    expression: str
    unit: str
    thresholds: Thresholds | None = None
    bar: bool = False
    states: dict[str, tuple[str, str]] | None = None

    def properties(self) -> list[models.DynamicConfigValue]:
        """Overrides of the table's defaults."""
        values: dict[str, object] = {"unit": self.unit}
        if self.thresholds:
            values["thresholds"] = thresholds_config(self.thresholds).build()
        if self.bar:
            values |= {"min": 0, "max": 1, "custom.cellOptions": {"type": "gauge", "mode": "basic"}}
        elif self.thresholds or self.states:
            values["custom.cellOptions"] = {"type": "color-text"}
        if self.states:
            values["mappings"] = [mapping(self.states)]
        return [models.DynamicConfigValue(id_val=name, value=value) for name, value in values.items()]


def rows_of(
    title: str,
    look_for: str,
    labels: dict[str, str],
    columns: Sequence[Column],
    info: Sequence[str] = (),
    *,
    height: int = 14,
    width: int = WIDTH,
    link: str = "",
) -> table.Panel:
    """A table with a row for each value of `labels` (label -> title of its column), merged over the columns.

    `info` are further queries, for their labels alone; `link` is where a click on the first label leads.
    """
    panel = described(table.Panel(), title, look_for, RATIO, NO_THRESHOLDS, width, height)
    expressions = [*(column.expression for column in columns), *info]
    values = [f"Value #{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"][: len(expressions)]
    for name, expression in zip(values, expressions, strict=True):
        panel.with_target(target(expression, ref_id=name[-1]).instant().format(PromQueryFormat.TABLE))
    # With a single query the value has no letter.
    hidden = ["Time", "Value", *values[len(columns) :]]
    renamed = labels | {name: column.title for name, column in zip(values, columns, strict=False)}
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    organized = {
        "excludeByName": dict.fromkeys(hidden, True),
        "indexByName": {name: position for position, name in enumerate(renamed)},
        "renameByName": renamed,
    }
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organized))
    for column in columns:
        panel.override_by_name(column.title, column.properties())
    first = next(iter(labels.values()))
    if link:
        links = [{"title": "Open ${__value.raw}", "url": link}]
        panel.override_by_name(first, [models.DynamicConfigValue(id_val="links", value=links)])
    panel.align(common_models.FieldTextAlignment.AUTO)
    return panel.sort_by([common.TableSortByFieldState().display_name(first)])


def mapping(states: dict[str, tuple[str, str]]) -> models.ValueMap:
    """Texts and colours for values."""
    options = {
        number: models.ValueMappingResult(text=text, color=color, index=position)
        for position, (number, (text, color)) in enumerate(states.items())
    }
    return models.ValueMap(options=options)
