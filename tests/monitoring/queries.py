"""The queries of the dashboards, and what is in a PromQL expression."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "monitoring/grafana/dashboards").glob("*.json"))

_WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"}
_NAMES = re.compile(r"(?<![\w$])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")
_GROUPS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_SELECTORS = re.compile(r"([a-zA-Z_:][\w:]*)\{([^{}]*)\}")
_STRINGS = re.compile(r'"[^"]*"')


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards, by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All but rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[tuple[str, str, str]]:
    """(dashboard, panel or annotation, expression) of every query, its variables left in place."""
    queries = []
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            queries += [(name, panel["title"], target["expr"]) for target in panel["targets"]]
        for annotation in dashboard["annotations"]["list"]:
            queries.append((name, f"annotation {annotation['name']}", annotation["expr"]))
    return queries


def variable_queries() -> list[tuple[str, str, str, str]]:
    """(dashboard, variable, selector, label) of every variable that is a query, `label_values(selector, label)`."""
    found = []
    for name, dashboard in dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                assert match, f"{name}: {variable['query']}"
                found.append((name, variable["name"], match[1], match[2]))
    return found


def with_variables(
    expr: str,
    run: str = ".*",
    stage: str = ".*",
    head: str = ".*",
    job: str = "dcdist",
    rate_interval: str = "1m",
    interval: str = "15s",
    time_range: str = "1h",
) -> str:
    """The expression as Grafana sends it. Values are regular expressions; the defaults are those of "All"."""
    values = {"run": run, "stage": stage, "head": head, "job": job}
    values |= {"__rate_interval": rate_interval, "__interval": interval, "__range": time_range}
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], expr)


def without_fallback(expr: str) -> str:
    """The expression without the zeros that panels show where it has nothing: with them it always has data."""
    stripped = re.sub(r"\s+or\s+(?:vector\(0\)|0 \* [^()]*\([^()]*\) \([^()]*\))\s*$", "", expr)
    assert not re.search(r"\bor\s+(?:vector|0)\b", stripped), f"another fallback in {expr}"
    return stripped


def metrics_in(expr: str) -> set[str]:
    """Names of metrics and recording rules."""
    bare = re.sub(r"\[[^\]]*\]|\{[^{}]*\}", "", _GROUPS.sub("", _STRINGS.sub("", expr)))
    bare = re.sub(r"\boffset\s+\S+", "", bare)
    return {name for name in _NAMES.findall(bare) if name not in _WORDS}


def labels_in(expr: str) -> Iterator[tuple[set[str], set[str]]]:
    """(labels, metrics): what selectors and groupings name, and the metrics that have to have it.

    For `by` those are all metrics that it aggregates; `on` and `group_left` may name a label of any side.
    """
    for metric, selector in _SELECTORS.findall(expr):
        yield set(re.findall(r"(\w+)\s*[=!]", _STRINGS.sub('""', selector))), {metric}
    for match in re.finditer(r"\bby\s*\(([^()]*)\)\s*\(", expr):
        yield _names(match[1]), metrics_in(expr[match.end() : _closing(expr, match.end())])
    for match in re.finditer(r"\b(?:on|ignoring|group_left|group_right)\s*\(([^()]*)\)", expr):
        yield _names(match[1]), metrics_in(expr)


def grouped_by(expr: str) -> set[str]:
    """Labels that some result of the expression can have."""
    return set().union(*(_names(match) for match in re.findall(r"\bby\s*\(([^()]*)\)", expr)))


def _names(listed: str) -> set[str]:
    return {name.strip() for name in listed.split(",") if name.strip()}


def _closing(text: str, start: int) -> int:
    """Where the parenthesis ends that was opened before `start`."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"no closing parenthesis after {text[:start]}")
