"""A run where nothing may listen: a real node_exporter serves its file, and a real Prometheus reads that."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dcdist.run_directory import RunDirectory
from tests.availability import unavailable
from tests.cluster.prometheus import watching
from tests.cluster.slurm import free_ports, wait_for
from tests.runs.processes import start_run

NODE_EXPORTER = "prometheus-node-exporter"  # as Debian calls it


def test_node_exporter_serves_a_run(tmp_path: Path, config: Path) -> None:
    if shutil.which(NODE_EXPORTER) is None:
        unavailable(f"{NODE_EXPORTER} is not installed")
    run, folder = tmp_path / "run", tmp_path / "textfile"
    (port,) = free_ports(1)
    target = f"127.0.0.1:{port}"
    exporter = subprocess.Popen(
        [
            NODE_EXPORTER,
            f"--web.listen-address={target}",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={folder}",
        ],
        stderr=subprocess.DEVNULL,
    )
    node = {"job_name": "node", "static_configs": [{"targets": [target]}]}
    try:
        with watching(tmp_path / "prometheus", tmp_path / "nothing", node) as prometheus:
            started = start_run(config, [f"metrics.prometheus_textfile={folder}", "train.num_epochs=100000"])
            own = f'run="{run}", job="node"'
            prometheus.wait_for(f"dcdist_progress_steps{{{own}}} > 20 and rate(dcdist_steps_total{{{own}}}[10s]) > 0")
            (clusters,) = prometheus.wait_for(f"dcdist_clusters{{{own}}}")
            assert clusters["value"][1] == "6"
            (all_sizes,) = prometheus.query(f'dcdist_cluster_size_ratio_bucket{{{own}, le="+Inf"}}')
            assert all_sizes["value"][1] == "6"
            (errors,) = prometheus.query('node_textfile_scrape_error{job="node"}')
            assert errors["value"][1] == "0", "every line of the file is as node_exporter wants it"
            RunDirectory(str(run)).request_stop()
            prometheus.wait_for(f"dcdist_finished{{{own}}} == 1")
            assert started.wait() == [3]
            assert list(folder.iterdir()) == []
            wait_for(lambda: not prometheus.query(f"dcdist_finished{{{own}}}"), 30, "the run's figures go")
    finally:
        exporter.kill()
        exporter.wait()
