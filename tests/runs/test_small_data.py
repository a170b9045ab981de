"""Small data is normal use: no method collapses on the digits or on 2,000 photographs with its own config."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dcdist.data.digits import make_digits
from dcdist.metrics.jsonl import read_metrics
from dcdist.storage import open_storage
from tests.configs_shrunken import config_paths
from tests.runs.processes import start_run, write_config

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_PHOTOGRAPHS = 2000
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    make_digits(str(folder / "digits"))
    table = pq.read_table(shared_data / "cifar10_catsdogs.parquet")
    train = np.flatnonzero(np.array(table["split"].to_pylist()) == "train")[:NUM_PHOTOGRAPHS]
    test = np.flatnonzero(np.array(table["split"].to_pylist()) == "test")[:200]
    pq.write_table(table.take(np.concatenate([train, test])), folder / "photographs.parquet")
    return {"digits": folder / "digits", "catsdogs": folder / "photographs.parquet"}


@pytest.mark.parametrize(
    "path",
    [path for folder in ("digits", "catsdogs") for path in config_paths(CONFIGS / folder)],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_no_method_collapses(path: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", {"extends": str(path)})
    overrides = [f"run.dir={tmp_path / 'run'}", f"data.root={roots[path.parent.name]}"]
    quiet = ["data.num_workers=0", "metrics.progress=false", "metrics.tensorboard=false", "evaluation.summary=false"]
    running = start_run(config, [*overrides, *quiet, f"data.cache_directory={tmp_path / 'cache'}"], num_processes=2)
    assert running.wait(1500) == [0, 0], running.errors()
    records = list(read_metrics(open_storage(tmp_path / "run")))
    assert [record["message"] for record in records if record.get("event") == "collapse"] == []
    losses = [record["loss"] for record in records if record["kind"] == "epoch"]
    assert None not in losses, "an epoch had nothing to learn from"
    assert all(math.isfinite(loss) for loss in losses)
    skipped = [record["figures"]["skipped_ratio"] for record in records if "skipped_ratio" in record.get("figures", {})]
    assert not skipped or np.mean(skipped) < 0.5
    final = sorted((tmp_path / "run/assignments").glob("*-final.parquet"), key=lambda file: file.stat().st_mtime)[-1]
    sizes = np.bincount(pq.read_table(final)["cluster"].to_numpy())
    assert (sizes > 0).sum() > 1
    assert sizes.max() < 0.9 * sizes.sum()
