"""The dashboards: what build.py gives, readable by Grafana's own models, and about metrics that exist."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.grafana.build import BOARDS, encoded
from tests.monitoring.queries import (
    DASHBOARDS,
    ROOT,
    dashboard_queries,
    dashboards,
    grouped_by,
    labels_in,
    metrics_in,
    panels,
    variable_queries,
    with_variables,
)

# Of every target, and of every series.
TARGET_LABELS = {"namespace", "instance", "job"}  # the first one in Kubernetes alone
# What Prometheus itself adds.
OWN_METRICS = {"up": TARGET_LABELS, "ALERTS": {"run", "stage", "head", "alertname", "alertstate", "severity"}}
SUFFIXES = {
    "histogram": {"_bucket": {"le"}, "_count": set[str](), "_sum": set[str]()},
    "gaugehistogram": {"_bucket": {"le"}, "_gcount": set[str](), "_gsum": set[str]()},
}

every_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: str(path.stem))


def documented() -> dict[str, set[str]]:
    """Labels of every series that docs/metrics.md names."""
    rows = re.findall(r"^\| `(dcdist_\w+)` \| (\w+) \| ([\w, ]+) \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    series: dict[str, set[str]] = {}
    for name, kind, listed in rows:
        labels = {label.strip() for label in listed.split(",")} | TARGET_LABELS
        for suffix, more in SUFFIXES.get(kind, {"": set[str]()}).items():
            series[name + suffix] = labels | more
    assert len(series) > 40
    return series


def known() -> dict[str, set[str]]:
    """Labels of every series that dashboards may query."""
    series = documented() | OWN_METRICS
    labels = set().union(*series.values())
    rules = ROOT / "monitoring/rules.yaml"
    for group in yaml.safe_load(rules.read_text())["groups"] if rules.exists() else ():
        series |= {rule["record"]: labels for rule in group["rules"] if "record" in rule}
    return series


def test_committed_files_are_what_build_gives() -> None:
    assert {path.stem for path in DASHBOARDS} == set(BOARDS)
    for path in DASHBOARDS:
        assert path.read_text() == encoded(path.stem), "run python -m monitoring.grafana.build"


@every_dashboard
def test_models_of_grafana_read_them(path: Any) -> None:
    register_default_plugins()
    data = json.loads(path.read_text())
    for annotation in data["annotations"]["list"]:  # Grafana reads these two, its models do not know them
        assert annotation.pop("titleFormat") == annotation["name"]
        assert annotation.pop("textFormat") == "{{run}}"
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(data))) == data


def test_identities() -> None:
    loaded = dashboards().values()
    assert len({dashboard["uid"] for dashboard in loaded}) == len(loaded)
    for dashboard in loaded:
        assert re.fullmatch(r"[\w-]{8,40}", dashboard["uid"])
        assert "id" not in dashboard
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
        titles = [panel["title"] for panel in panels(dashboard) if panel["type"] != "stat"]
        assert len(set(titles)) == len(titles)


def test_every_data_source_is_the_variable() -> None:
    def sources(part: Any) -> list[Any]:
        if isinstance(part, dict):
            inner = [source for key, value in part.items() if key != "datasource" for source in sources(value)]
            return inner + ([part["datasource"]] if "datasource" in part else [])
        return [source for item in part for source in sources(item)] if isinstance(part, list) else []

    for name, dashboard in dashboards().items():
        found = sources(dashboard)
        assert len(found) > 2 * len(panels(dashboard)), name
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found), name
        for panel in panels(dashboard):
            assert all("datasource" in part for part in (panel, *panel["targets"])), panel["title"]
        first = dashboard["templating"]["list"][0]
        assert (first["type"], first["name"], first["query"]) == ("datasource", "datasource", "prometheus")


@pytest.mark.parametrize(("dashboard", "panel", "expr"), dashboard_queries())
def test_metrics_and_labels_exist(dashboard: str, panel: str, expr: str) -> None:  # noqa: ARG001
    series = known()
    assert metrics_in(expr)
    assert metrics_in(expr) <= series.keys()
    for labels, metrics in labels_in(expr):
        for label in labels:
            assert any(label in series[metric] for metric in metrics), f"{label} in {sorted(metrics)}"


def test_alerts_and_targets_of_others_are_not_counted() -> None:
    for _, panel, expr in dashboard_queries():
        for selector in re.findall(r"ALERTS\{([^}]*)\}", expr):
            assert 'alertname=~"Dcdist.*"' in selector, panel
    for name, dashboard in dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["name"] == "job":
                assert "allValue" not in variable, f"{name}: all would be every job of this Prometheus"


def test_every_metric_of_a_grouping_has_its_labels() -> None:
    series = known()
    for _, panel, expr in dashboard_queries():
        for labels, metrics in labels_in(expr):
            if len(metrics) == 1:
                (metric,) = metrics
                assert labels <= series[metric], f"{panel}: {expr}"


def test_variables() -> None:
    series = known()
    for name, variable, selector, label in variable_queries():
        (metric,) = metrics_in(selector)
        assert label == variable
        assert label in series[metric], name
        assert all(labels <= series[metric] for labels, _ in labels_in(selector)), name
    for name, dashboard in dashboards().items():
        defined = {variable["name"] for variable in dashboard["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
        assert {variable for variable in used if not variable.startswith("__")} <= defined, name
        assert used - {"__value", "__url_time_range", "__all"} >= defined - {"datasource"}, f"{name}: not used"


def test_legends_name_labels_of_the_result() -> None:
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                labels = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
                assert labels <= grouped_by(target["expr"]), f"{name}: {panel['title']}"


def test_panels_explain_themselves_and_do_not_overlap() -> None:
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            assert len(panel["description"]) > 5, f"{name}: {panel['title']}"
            assert panel["fieldConfig"]["defaults"]["unit"], f"{name}: {panel['title']}"
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], f"{name}: {panel['title']}"
        for one, other in combinations(dashboard["panels"], 2):
            (a, b) = (one["gridPos"], other["gridPos"])
            beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
            assert beside or above, f"{name}: {one['title']} lies on {other['title']}"
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])


def test_links_keep_variables_and_time() -> None:
    uids = {dashboard["uid"] for dashboard in dashboards().values()}
    for dashboard in dashboards().values():
        (link,) = dashboard["links"]
        assert link["includeVars"]
        assert link["keepTime"]
        assert set(link["tags"]) <= set(dashboard["tags"])
        assert set(re.findall(r"/d/([\w-]+)", json.dumps(dashboard))) <= uids


def test_every_metric_is_shown_somewhere() -> None:
    shown = {metric for _, _, expr in dashboard_queries() for metric in metrics_in(expr)}
    # What the others are counted from, or the same as a gauge that goes through restarts.
    others = {"dcdist_steps_total", "dcdist_epochs_total", "dcdist_progress_samples"}
    others |= {"dcdist_cluster_size_ratio_gcount", "dcdist_cluster_size_ratio_gsum"}
    assert documented().keys() - shown == others


def test_with_variables_leaves_none() -> None:
    for _, _, expr in dashboard_queries():
        assert "$" not in with_variables(expr)
    expr = 'rate(dcdist_samples_total{run=~"$run"}[$__rate_interval])'
    assert with_variables(expr, run="a") == 'rate(dcdist_samples_total{run=~"a"}[1m])'


def test_parsing_of_expressions() -> None:
    expr = 'sum by (run, le) (rate(a_bucket{run=~"x{y}", le!="1"}[5m])) / on (run) group_left max(b offset 1m) > 0.5'
    assert metrics_in(expr) == {"a_bucket", "b"}
    assert list(labels_in('sum by (run) (a{le="1", head!="0"})')) == [({"le", "head"}, {"a"}), ({"run"}, {"a"})]
    assert grouped_by(expr) == {"run", "le"}


def test_provisioning_files() -> None:
    folder = ROOT / "monitoring/grafana/provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards.yaml").read_text())["providers"]
    assert provider["options"]["path"]
    (source,) = yaml.safe_load((folder / "datasources.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
