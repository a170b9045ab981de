"""Values of the dashboards' queries for a run that was killed and started again, computed by promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.availability import unavailable
from tests.monitoring.queries import dashboard_queries, with_variables

# Minutes that an attempt answered, how many it did, its first step and restarts. In between nothing answers.
ATTEMPTS = (("first", 0, 20, 0, 0), ("second", 25, 35, 1100, 1))
RUN = 'run="a"'
STAGE = 'run="a", stage="s"'


def series() -> list[dict[str, str]]:
    """A step a second, 10 images each, of 6,000; a sample a minute."""
    result = []
    for instance, begin, minutes, step, restarts in ATTEMPTS:
        values = {
            f"dcdist_finished{{{RUN}": "0",
            f'dcdist_build_info{{{RUN}, version="1"': "1",
            f"dcdist_restarts{{{RUN}": f"{restarts}",
            f"dcdist_checkpoint_last_commit_timestamp_seconds{{{RUN}": f"{begin * 60}",
            f"dcdist_checkpoint_interval_seconds{{{RUN}": "600",
            f"dcdist_progress_steps{{{STAGE}": f"{step}+60",
            f"dcdist_target_steps{{{STAGE}": "6000",
            f"dcdist_samples_total{{{STAGE}": "0+600",
            f"dcdist_step_duration_seconds_sum{{{STAGE}": "0+60",
            f'dcdist_data_wait_seconds_total{{{STAGE}, node="n1"': "0+6",
            f'dcdist_data_wait_seconds_total{{{STAGE}, node="n2"': "0+12",
            f'dcdist_phase_duration_seconds{{{STAGE}, phase="train"': "30",
            f'dcdist_phase_duration_seconds{{{STAGE}, phase="features"': "10",
            f'dcdist_processes{{{RUN}, node="n1"': "2",
            f'dcdist_processes{{{RUN}, node="n2"': "2",
        }
        for le, count in {"0.5": 2, "2.0": 9, "+Inf": 10}.items():
            for head in (0, 1):
                values[f'dcdist_cluster_size_ratio_bucket{{{STAGE}, head="{head}", le="{le}"'] = f"{count}"
        before = f"_x{begin} " if begin else ""
        for name, value in values.items():
            labels = f'{name}, instance="{instance}", job="dcdist"}}'
            result.append({"series": labels, "values": f"{before}{value}x{minutes} stale"})
        labels = f'dcdist_clusterings_total{{{STAGE}, instance="{instance}", job="dcdist"}}'
        result.append({"series": labels, "values": f"{before}0x4 1x9 2x5 stale"})
    return result


# (dashboard, panel, which of its queries, minute) -> values by labels
EXPECTED: dict[tuple[str, str, int, int], dict[str, float]] = {
    ("run", "State", 0, 10): {RUN: 0},
    ("run", "State", 0, 23): {RUN: 2},
    ("run", "State", 0, 40): {RUN: 0},
    ("fleet", "Runs", 11, 40): {RUN: 0},
    ("run", "annotation Restart", 0, 20): {},
    ("run", "annotation Restart", 0, 25): {RUN: 1},
    ("run", "annotation Restart", 0, 26): {},
    ("run", "annotation Clustering", 0, 5): {RUN: 1},
    ("run", "annotation Clustering", 0, 6): {},
    ("run", "annotation Clustering", 0, 25): {},
    ("run", "annotation Clustering", 0, 30): {RUN: 1},
    ("run", "Progress", 0, 10): {STAGE: 0.1},
    ("run", "Progress", 0, 30): {STAGE: 1400 / 6000},
    ("run", "Remaining", 0, 10): {STAGE: 5400},
    ("run", "Images per second", 0, 10): {RUN: 10},
    ("run", "Images per second", 0, 40): {RUN: 10},
    ("run", "Data wait", 0, 40): {RUN: 0.2},
    ("run", "Last commit", 0, 40): {RUN: 1.5},
    ("resources", "Data wait by node", 0, 40): {f'{RUN}, node="n1"': 0.1, f'{RUN}, node="n2"': 0.2},
    ("resources", "Images per second and process", 0, 40): {RUN: 2.5},
    ("resources", "Phases' share of an epoch", 0, 40): {
        f'{RUN}, phase="train"': 0.75,
        f'{RUN}, phase="features"': 0.25,
    },
    ("clusters", "Sizes, head $head", 0, 40): {'le="0.5"': 4, 'le="2.0"': 18, 'le="+Inf"': 20},
}


def test_values_go_through_a_restart(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        unavailable("needs promtool")
        return
    queries: dict[tuple[str, str], list[str]] = {}
    for dashboard, panel, expr in dashboard_queries():
        queries.setdefault((dashboard, panel), []).append(with_variables(expr, rate_interval="5m", interval="1m"))
    tests = [
        {
            "expr": queries[dashboard, panel][position],
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f"{{{labels}}}", "value": value} for labels, value in values.items()],
        }
        for (dashboard, panel, position, minute), values in EXPECTED.items()
    ]
    path = tmp_path / "test.yaml"
    path.write_text(json.dumps({"tests": [{"interval": "1m", "input_series": series(), "promql_expr_test": tests}]}))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        unavailable("needs promtool")
        return
    rules = [
        {"record": f"query:{number}", "expr": with_variables(expr)}
        for number, (_, _, expr) in enumerate(dashboard_queries())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
