"""Rules and scrape configs for Prometheus: what promtool says of them, and that they fit docs/metrics.md.

The PrometheusRule is a copy of monitoring/rules.yaml. To write it anew:
DCDIST_REGENERATE=1 .venv/bin/pytest tests/monitoring/test_rules.py -k same_groups
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.availability import unavailable
from tests.launch.kubernetes_manifests import EVERYTHING, RAY, documents_of, pods_of, workload_of
from tests.launch.test_kubernetes_manifests import closed

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
KUBERNETES = MONITORING / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "schemas"
RULES = MONITORING / "rules.yaml"
RULE_TESTS = [MONITORING / "rules_test.yaml", MONITORING / "rules_clusters_test.yaml"]

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDS = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]

COPY_HEADER = """\
# For the Prometheus operator: the groups of ../rules.yaml, which says why they are as they are. Where the operator
# selects by a label (kube-prometheus-stack: `release`), add it to metadata.labels.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: dcdist
  labels:
    app.kubernetes.io/part-of: dcdist
spec:
"""


def promtool(*arguments: str | Path) -> str:
    """What promtool prints; the test fails where it finds something wrong."""
    program = shutil.which("promtool")
    if program is None:
        unavailable("promtool is not installed (tests/cluster/install.sh)")
    assert program is not None
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What promtool says


def test_the_rules_are_valid() -> None:
    assert f"SUCCESS: {len(ALERTS) + len(RECORDS)} rules found" in promtool("check", "rules", RULES)


def test_the_scrape_config_is_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", MONITORING / "prometheus.yml")


def test_a_wrong_rule_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "rules.yaml"
    wrong.write_text(RULES.read_text().replace("max by (run) (dcdist_finished)", "max by (run (dcdist_finished)"))
    with pytest.raises(AssertionError, match="parse error"):
        promtool("check", "rules", wrong)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent_as_they_should(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


# What the tests of promtool cover


def cases(fires: bool) -> set[tuple[str, str]]:
    """Alert and sign of all cases in which an alert fires; or alert of those in which it is silent, without a sign."""
    found = set()
    for test in [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]:
        for case in test.get("alert_rule_test", ()):
            expected = case.get("exp_alerts", [])
            if fires:
                found |= {(case["alertname"], alert["exp_labels"].get("sign", "")) for alert in expected}
            elif not expected:
                found.add((case["alertname"], ""))
    return found


def test_every_alert_is_seen_firing_and_silent() -> None:
    assert cases(fires=True) == {(rule["alert"], rule["labels"].get("sign", "")) for rule in ALERTS}
    assert cases(fires=False) == {(rule["alert"], "") for rule in ALERTS}


def test_every_recorded_value_is_looked_at() -> None:
    text = "".join(path.read_text() for path in RULE_TESTS)
    read_by_alerts = "".join(rule["expr"] for rule in ALERTS)
    assert [rule["record"] for rule in RECORDS if rule["record"] not in text + read_by_alerts] == []


# What the rules are made of


def documented_metrics() -> dict[str, str]:
    """Name -> type, as the tables of docs/metrics.md have it."""
    rows = re.findall(r"^\| `(dcdist_\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    return dict(rows)


def series_of(metrics: dict[str, str]) -> set[str]:
    """Names of the series that Prometheus has of the metrics."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "gaugehistogram": ("_bucket", "_gsum", "_gcount")}
    return {name + suffix for name, kind in metrics.items() for suffix in suffixes.get(kind, ("",))}


def test_rules_read_metrics_that_exist() -> None:
    known = series_of(documented_metrics()) | {rule["record"] for rule in RECORDS}
    for rule in ALERTS + RECORDS:
        read = set(re.findall(r"(?:\w+:)?dcdist_\w+(?::\w+)?", rule["expr"]))
        assert read <= known, rule
        assert read or 'up{job="dcdist"}' in rule["expr"]


def test_series_in_the_tests_exist() -> None:
    known = series_of(documented_metrics()) | {"up"}
    for path in RULE_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for series in test["input_series"]:
                assert series["series"].split("{")[0] in known


def test_recording_rules_are_named_by_level_metric_and_operation() -> None:
    levels = {"run": "run", "run_stage": "run, stage, method", "run_stage_head": "run, stage, method, head"}
    for rule in RECORDS:
        level, metric, operation = rule["record"].split(":")
        assert metric.startswith("dcdist_")
        assert re.fullmatch(r"(min|mean|ratio|rate|increase|delta|ratio_rate|last|previous)(\d+m)?", operation)
        assert f" by ({levels[level]})" in rule["expr"]


def test_nothing_relies_on_the_instance_of_a_run() -> None:
    for rule in ALERTS + RECORDS:
        assert "instance" not in rule["expr"] or rule["alert"] == "DcdistTargetDown"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels'].get('sign', '')}")
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "remedy"}
    assert re.search(r"\{\{ \$labels\.(run|instance) \}\}", rule["annotations"]["summary"])
    for text in rule["annotations"].values():
        assert text.count("$value") == len(re.findall(r"\$value \| (?:humanize|printf)", text))


def test_the_operators_page_has_a_section_for_every_alert() -> None:
    sections = re.findall(r"^### (Dcdist\w+)$", (ROOT / "docs" / "monitoring.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted({rule["alert"] for rule in ALERTS})


# Kubernetes


def test_the_prometheusrule_has_the_same_groups() -> None:
    path = KUBERNETES / "prometheusrule.yaml"
    if os.environ.get("DCDIST_REGENERATE"):
        lines = RULES.read_text().split("groups:\n")[1].splitlines()
        kept = [re.sub(r" # [^\"]*$", "", line) for line in lines if line and not line.lstrip().startswith("#")]
        path.write_text(COPY_HEADER + "".join(f"  {line}\n" for line in ["groups:", *kept]))
    copy = yaml.safe_load(path.read_text())["spec"]["groups"]
    assert copy == GROUPS


@pytest.mark.parametrize("name", ["prometheusrule", "podmonitor"])
def test_resources_of_the_operator_are_valid(name: str) -> None:
    path = SCHEMAS / f"monitoring.coreos.com_{name}s.json"
    if not path.is_file():
        unavailable(f"the schema {path} is not there")
    text = path.read_text().replace("^(?i)", "(?i)^")  # Go takes flags anywhere, Python at the beginning alone
    schema = closed(json.loads(text)["versions"]["v1"])
    documents = list(yaml.safe_load_all((KUBERNETES / f"{name}.yaml").read_text()))
    for document in documents:
        jsonschema.validate(document, schema)
    misspelt = documents[0]
    misspelt["spec"]["selectors"] = misspelt["spec"].pop(next(iter(misspelt["spec"])))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, schema)


MONITORS = {
    document["metadata"]["name"]: document["spec"]
    for document in yaml.safe_load_all((KUBERNETES / "podmonitor.yaml").read_text())
}


def scraped(name: str) -> set[tuple[str, str, str]]:
    """Monitor, role of a pod and port of all that is scraped of what is rendered."""
    found = set()
    workload = workload_of(documents_of(name))
    for role, pod in pods_of(workload).items():
        labels = dict(pod["metadata"]["labels"])
        (container,) = pod["spec"]["containers"]
        ports = {port["name"] for port in container.get("ports", ())}
        if workload["kind"] == "RayJob":
            labels["ray.io/node-type"] = role  # as KubeRay adds it, and a port
            ports.add("metrics")
        else:
            labels["batch.kubernetes.io/job-completion-index"] = "0"
        for monitor, spec in MONITORS.items():
            wanted = spec["selector"]["matchLabels"]
            exist = [rule["key"] for rule in spec["selector"].get("matchExpressions", ())]
            if wanted.items() <= labels.items() and set(exist) <= set(labels):
                endpoints = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
                found |= {(monitor, role, port) for port in endpoints & ports}
    return found


@pytest.mark.parametrize("name", EVERYTHING)
def test_podmonitors_find_the_ports_of_the_manifests(name: str) -> None:
    if name in RAY:
        assert scraped(name) == {
            ("dcdist-rayjob", "worker", "dcdist-metrics"),
            ("dcdist-ray", "head", "metrics"),
            ("dcdist-ray", "worker", "metrics"),
        }
    else:
        assert scraped(name) == {("dcdist-job", "worker", "metrics")}


def test_targets_in_kubernetes_are_named_as_the_alert_has_them() -> None:
    for name in ("dcdist-job", "dcdist-rayjob"):
        assert MONITORS[name]["jobLabel"] == "app.kubernetes.io/part-of"  # the value is dcdist
        (endpoint,) = MONITORS[name]["podMetricsEndpoints"]
        assert endpoint["relabelings"][0]["targetLabel"] == "instance"
    jobs = [job["job_name"] for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]]
    assert jobs == ["dcdist", "ray"]
