"""How fast a Prometheus with fifty runs answers what the fleet's dashboard asks.

    python -m benchmarks.fleet [--runs N] [--hours H]

The series are those of a real run's /metrics, recorded each 15 seconds under as many names as there are runs, with
counters that grow. Each query is asked as its panel asks it: at the end, and over the whole time with 400 points.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.epoch import CHECKOUT
from dcdist.data.digits import make_digits
from dcdist.metrics.jsonl import read_metrics
from dcdist.metrics.prometheus import Identity, PrometheusSink
from dcdist.storage import open_storage
from tests.cluster.prometheus import Prometheus
from tests.monitoring.queries import dashboard_queries, with_variables

INTERVAL = 15  # seconds between scrapes
Sample = tuple[str, dict[str, str], float]


def page(folder: Path) -> list[Sample]:
    """What a short real run shows at its end."""
    make_digits(str(folder / "digits"))
    overrides = [f"data.root={folder / 'digits'}", f"run.dir={folder / 'run'}", "train.num_epochs=7"]
    overrides += ["evaluation.summary=false", "metrics.progress=false"]
    config = CHECKOUT / "configs" / "deepcluster_digits.yaml"
    subprocess.run([sys.executable, "-m", "dcdist", "train", str(config), *overrides], check=True, cwd=CHECKOUT)
    registries: list[CollectorRegistry] = []

    def keep(registry: CollectorRegistry) -> list[object]:
        registries.append(registry)
        return []

    identity = Identity("RUN", {"deepcluster": "deepcluster"}, "0.1.0", "slurm", "4711", 600.0)
    sink = PrometheusSink(identity, keep)  # type: ignore[arg-type]
    for record in read_metrics(open_storage(str(folder / "run"))):
        sink.write(record)
        if record["kind"] == "step":
            sink.step_done(record["epoch"], record["step"], 0.1)
    text = generate_latest(registries[0]).decode()
    sink.close()
    families = text_string_to_metric_families(text)
    return [(one.name, dict(one.labels), one.value) for family in families for one in family.samples]


def recorded(samples: list[Sample], num_runs: int, start: int, end: int) -> Iterator[str]:
    """OpenMetrics: every series of every run at every scrape."""
    times = range(start, end, INTERVAL)
    for name, labels, value in samples:
        grows = name.endswith(("_total", "_count", "_sum", "_bucket")) and "size_ratio" not in name
        for number in range(num_runs):
            own = {**labels, "run": f"/runs/{number}", "instance": f"/runs/{number}", "job": "dcdist"}
            listed = ",".join(f'{key}="{text}"' for key, text in own.items())
            for scrape, at in enumerate(times):
                now = at if name.endswith("_timestamp_seconds") else value * (scrape if grows else 1 + number / 100)
                yield f"{name}{{{listed}}} {now!r} {at}\n"
    for number in range(num_runs):
        for at in times:
            yield f'up{{instance="/runs/{number}",job="dcdist"}} 1 {at}\n'
    yield "# EOF\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--hours", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcdist-benchmark-") as temporary:
        folder = Path(temporary)
        samples = page(folder)
        end = int(time.time()) // INTERVAL * INTERVAL
        start = end - int(options.hours * 3600)
        text = folder / "recorded.txt"
        with text.open("w") as file:
            file.writelines(recorded(samples, options.runs, start, end))
        data = folder / "data"
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)]
        subprocess.run(command, check=True, capture_output=True)
        print(f"{options.runs} runs, {len(samples)} series each, {options.hours:g} h every {INTERVAL} s")
        prometheus = Prometheus(folder, folder / "discovery", data=data)
        try:
            _ask(prometheus, start, end - INTERVAL)
        finally:
            prometheus.stop()


def _ask(prometheus: Prometheus, start: int, end: int) -> None:
    step = max(INTERVAL, (end - start) // 400)
    slowest = {"at the end": 0.0, "over the time": 0.0}
    empty = []
    queries = [(panel, expr) for name, panel, expr in dashboard_queries() if name == "fleet"]
    for panel, expr in queries:
        filled = re.sub(r"\s+", " ", with_variables(expr, rate_interval="1m", interval=f"{step}s", time_range="3h"))
        seconds: dict[str, list[float]] = {side: [] for side in slowest}
        for _ in range(3):
            began = time.perf_counter()
            found = prometheus.query(filled, at=end)
            between = time.perf_counter()
            prometheus.query_range(filled, start, end, step)
            seconds["at the end"].append(between - began)
            seconds["over the time"].append(time.perf_counter() - between)
        medians = {side: statistics.median(each) for side, each in seconds.items()}
        slowest = {side: max(slowest[side], medians[side]) for side in slowest}
        if not found:
            empty.append(panel)
        print(f"  {panel:<40} {medians['at the end']:7.3f} s {medians['over the time']:7.3f} s")
    print("  slowest".ljust(43) + f"{slowest['at the end']:7.3f} s {slowest['over the time']:7.3f} s")
    print(f"  without data: {', '.join(sorted(set(empty))) or 'none'}")


if __name__ == "__main__":
    main()
