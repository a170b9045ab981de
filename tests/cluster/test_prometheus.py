"""Real runs under a real Prometheus: every query has data, a resume makes no jump, a collapse raises its alert."""

from __future__ import annotations

import itertools
import json
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcdist.metrics.jsonl import read_attempts
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_storage
from tests.availability import unavailable
from tests.cluster import collapsing
from tests.cluster.prometheus import MONITORING, Prometheus, is_installed
from tests.metrics.certificates import write_certificate
from tests.monitoring.queries import dashboard_queries, metrics_in, with_variables, without_fallback
from tests.runs.conftest import experiment
from tests.runs.processes import RunningRun, start_run, write_config

CREDENTIALS = "prometheus:secret"
# What a run on CPUs cannot have.
WITHOUT_DATA = {"dcdist_gpu_memory_bytes"}


@dataclass(frozen=True)
class Watched:
    """What happened: a run of two processes was killed, resumed and stopped; another one collapsed all the while.

    The first one was read over TLS with a password, the other without. At the other one's port Prometheus also looked
    for a third run, which listened there once, as far as the file says that it left behind.
    """

    prometheus: Prometheus
    healthy: Path
    collapsed: Path
    dead: Path
    began: float
    killed: float
    resumed: float  # its first scrape
    ended: float  # before the stop
    over: float  # after it
    page: str  # of the resumed run


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Iterator[Watched]:
    if not is_installed():
        unavailable("prometheus and promtool are not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    discovery = folder / "discovery"
    certificate, key = write_certificate(folder)
    (folder / "credentials").write_text(CREDENTIALS)
    user, _, password = CREDENTIALS.partition(":")
    secured = [f"metrics.prometheus_certificate={certificate}", f"metrics.prometheus_private_key={key}"]
    secured += [f"metrics.prometheus_credentials={folder / 'credentials'}"]
    scrape_config = {
        "tls_config": {"ca_file": str(certificate)},
        "basic_auth": {"username": user, "password": password},
    }
    prometheus = Prometheus(folder, discovery, scrape=scrape_config)
    metrics = ["metrics.prometheus_port=0", f"metrics.prometheus_discovery={discovery}", "metrics.every_num_steps=1"]
    metrics += ["train.num_epochs=100000", "checkpoint.every_num_steps=50"]  # until they are ended
    healthy = write_config(folder / "healthy.yaml", experiment(digits_folder, folder / "healthy"))
    collapsed = write_config(folder / "collapsed.yaml", experiment(digits_folder, folder / "collapsed"))
    run = f'{{run="{folder}/healthy"}}'
    began = time.time()
    # Slowly, for features that are all equal end a run; so many clusters that 20 / K is a share.
    pulled = ["train.learning_rate=0.003", "clustering.num_clusters=24", "clustering.every_num_epochs=20"]
    other = start_run(collapsed, [*metrics, *pulled], prepare=collapsing.install)
    first = start_run(healthy, [*metrics, *secured], num_processes=2)
    try:
        prometheus.wait_for(f"rate(dcdist_steps_total{run}[10s]) and dcdist_progress_steps{run} > 150")
        prometheus.wait_for(f'dcdist_build_info{{run="{folder}/collapsed"}}')
        target = entry_of(discovery, folder / "collapsed")["targets"][0]
        left_behind = discovery / "dcdist-dead.json"
        left_behind.write_text(json.dumps([{"targets": [target], "labels": {"instance": f"{folder}/dead"}}]))
        prometheus.wait_for(f'up{{instance="{folder}/dead"}} == 1')
        time.sleep(10)
        killed = time.time()
        first.signal(signal.SIGKILL)
        assert first.wait() == [-signal.SIGKILL] * 2
        prometheus.wait_for(f'up{{instance="{folder}/healthy"}} == 0')
        second = start_run(healthy, [*metrics, *secured], num_processes=2)
        try:
            prometheus.wait_for(f"dcdist_restarts{run} == 1 and on (run) rate(dcdist_steps_total{run}[10s]) > 0")
            resumed = time.time()
            alert = 'ALERTS{alertname="DcdistCollapse", sign="entropy", alertstate="firing"}'
            prometheus.wait_for(f"last_over_time({alert}[10m])")
            time.sleep(15)
            page = scrape(discovery, folder / "healthy", certificate)
            ended = time.time()
            RunDirectory(str(folder / "healthy")).request_stop()
            assert second.wait() == [3, 3]
        finally:
            end(second)
        assert other.wait() == [1], "in the end its features are all equal"
        left_behind.unlink()
        time.sleep(3)  # so that queries by the second see the end
        runs = (folder / "healthy", folder / "collapsed", folder / "dead")
        yield Watched(prometheus, *runs, began, killed, resumed, ended, time.time(), page)
    finally:
        end(other)
        end(first)
        prometheus.stop()


def end(run: RunningRun) -> None:
    for process in run.processes:
        process.kill()


def entry_of(discovery: Path, run: Path) -> dict[str, Any]:
    """What the run's discovery file says."""
    for path in discovery.glob("*.json"):
        entry: dict[str, Any]
        (entry,) = json.loads(path.read_bytes())
        if entry["labels"]["instance"] == str(run):
            return entry
    raise AssertionError(f"no file in {discovery} names {run}")


def scrape(discovery: Path, run: Path, certificate: Path) -> str:
    """/metrics of the run, as its discovery file says where it is."""
    entry = entry_of(discovery, run)
    url = f"{entry['labels']['__scheme__']}://{entry['targets'][0]}/metrics"
    user, _, password = CREDENTIALS.partition(":")
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, url, user, password)
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(certificate))),
        urllib.request.HTTPBasicAuthHandler(passwords),
    )
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode())


def has_data(watched: Watched, expr: str) -> bool:
    return bool(watched.prometheus.query_range(expr, watched.began, watched.over))


def test_every_query_of_every_panel_has_data(watched: Watched) -> None:
    def asked(expr: str) -> str:
        """In seconds, where a dashboard looks at an hour by minutes."""
        return with_variables(expr.replace("[1h:1m]", "[10s:1s]"), rate_interval="10s", interval="1s", time_range="1m")

    empty = [
        f"{dashboard}, {panel}: {expr}"
        for dashboard, panel, expr in dashboard_queries()
        if not metrics_in(expr) & WITHOUT_DATA and not has_data(watched, asked(without_fallback(expr)))
    ]
    assert not empty


def test_every_rule_has_data(watched: Watched) -> None:
    rules = [
        rule for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    recorded = [rule["record"] for rule in rules if "record" in rule]
    assert [name for name in recorded if not has_data(watched, name)] == []
    # An alert's own expression has data where it fires alone; all that it asks for is there.
    asked = {name for rule in rules if "alert" in rule for name in metrics_in(rule["expr"])}
    assert [name for name in sorted(asked) if not has_data(watched, name)] == []


def test_nothing_jumps_at_the_resume(watched: Watched) -> None:
    run = f'{{run="{watched.healthy}"}}'
    (series,) = watched.prometheus.series(f"dcdist_samples_total{run}", watched.began, watched.ended)
    assert series["instance"] == str(watched.healthy), "one series, on whichever port the run answers"
    (rate,) = watched.prometheus.query_range(
        f"sum by (run) (rate(dcdist_samples_total{run}[5s]))", watched.began, watched.ended
    )
    assert max(float(value) for _, value in rate["values"]) <= 1.5 * fastest(watched.healthy, seconds=3.0)
    (steps,) = watched.prometheus.query_range(
        f"max by (run) (dcdist_progress_steps{run})", watched.began, watched.ended
    )
    values = [(at, float(value)) for at, value in steps["values"]]
    before = max(value for at, value in values if at <= watched.killed)
    after = min(value for at, value in values if at >= watched.resumed)
    repeated = float(watched.prometheus.query(f"dcdist_repeated_steps{run}", watched.ended)[0]["value"][1])
    assert after > before - 50 - 1, "it goes on from the newest checkpoint, not from 0"
    assert 0 <= repeated <= 50
    (reason,) = watched.prometheus.query(f"dcdist_preemptions{run}", watched.ended)
    assert (reason["metric"]["reason"], reason["value"][1]) == ("killed", "1")
    (restarts,) = watched.prometheus.query_range(f"dcdist_restarts{run}", watched.began, watched.over)
    assert [value for value, _ in itertools.groupby(value for _, value in restarts["values"])] == ["0", "1"]
    loop = 'ALERTS{alertname="DcdistRestartLoop"}'
    assert watched.prometheus.query_range(loop, watched.began, watched.over) == []


def test_a_port_that_another_run_has_now_gives_nothing(watched: Watched) -> None:
    def over_the_time(expr: str) -> list[dict[str, Any]]:
        return watched.prometheus.query_range(expr, watched.began, watched.over)

    instance = f'instance="{watched.dead}"'
    assert over_the_time(f"up{{{instance}}} == 1"), "it answers"
    assert over_the_time(f'{{__name__=~"dcdist_.*", {instance}}}') == [], "but not as itself"
    assert over_the_time("count by (run) (dcdist_build_info) > 1") == []
    assert over_the_time(f'ALERTS{{alertname="DcdistTargetDown", {instance}}}'), "nothing is kept: it is down"
    own = f'instance="{watched.collapsed}"'
    down = over_the_time(f'ALERTS{{alertname="DcdistTargetDown", {own}}} and on (instance) up == 1')
    assert down == [], "the run that has the port is not"
    assert over_the_time(f"scrape_samples_post_metric_relabeling{{{own}}} > 0")
    assert over_the_time(f"scrape_samples_post_metric_relabeling{{{own}}} != scrape_samples_scraped") == []
    assert over_the_time('{__name__=~".+", __tmp_run=~".+"}') == []


def fastest(run: Path, seconds: float) -> float:
    """Most samples a second over so many seconds, by the run's own records."""
    attempts, _ = read_attempts(open_storage(str(run)))
    rates = []
    for records in attempts.values():
        steps = [(record["time"], record["step"]) for record in records if record["kind"] == "step"]
        for time_, step in steps:
            later = next(((end, last) for end, last in steps if end >= time_ + seconds), None)
            if later is not None:
                rates.append((later[1] - step) * 16 / (later[0] - time_))
    return max(rates)


def test_the_collapse_alert_fires_on_the_collapsing_run_alone(watched: Watched) -> None:
    fired = watched.prometheus.query_range(
        'ALERTS{alertname="DcdistCollapse", alertstate="firing"}', watched.began, watched.ended
    )
    assert {alert["metric"]["run"] for alert in fired} == {str(watched.collapsed)}
    assert {alert["metric"]["sign"] for alert in fired} >= {"entropy", "largest"}


def test_of_the_healthy_run_nothing_fires(watched: Watched) -> None:
    fired = watched.prometheus.query_range(
        f'ALERTS{{run="{watched.healthy}", alertstate="firing"}}', watched.began, watched.ended
    )
    assert [alert["metric"] for alert in fired] == []


def test_the_end_is_seen_and_the_target_goes(watched: Watched) -> None:
    run = f'{{run="{watched.healthy}"}}'
    (finished,) = watched.prometheus.query(f"last_over_time(dcdist_finished{run}[10m])")
    assert finished["value"][1] == "1", "stopped on request: nobody waits for it"
    (other,) = watched.prometheus.query(f'last_over_time(dcdist_finished{{run="{watched.collapsed}"}}[10m])')
    assert other["value"][1] == "0", "failed: somebody should look"
    deadline = time.monotonic() + 30
    while watched.prometheus.query('up{job="dcdist"}'):
        assert time.monotonic() < deadline, "targets of runs that have ended stay"
        time.sleep(0.5)


def test_the_page_is_clean(watched: Watched) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=watched.page, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
