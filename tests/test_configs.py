"""Every config in configs/ resolves, and trains for a few steps on a shrunken copy of its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdist.build.checks import check_stages
from dcdist.build.run import build_backbone
from dcdist.config.identity import resolve_autos
from dcdist.config.load import load_config
from tests.configs_shrunken import config_paths, images_of, shrunken, shrunken_data
from tests.runs.processes import run_to_message, write_config

CONFIGS = Path(__file__).parents[1] / "configs"
PATHS = config_paths(CONFIGS)
# One of each method and clusterer, of those that need no large network.
SHARE = {
    "deepcluster_digits",
    "catsdogs/deepcluster_gmm",
    "catsdogs/deepcluster_pic",
    "catsdogs/deepcluster_v2",
    "catsdogs/swav",
    "catsdogs/scan",
    "catsdogs/jigsaw_distractors",
    "catsdogs/joint",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def test_the_share_exists_and_there_is_nothing_but_configs() -> None:
    assert set(map(name_of, PATHS)) >= SHARE
    assert {path.suffix for path in CONFIGS.rglob("*") if path.is_file()} == {".yaml"}


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_resolves(path: Path) -> None:
    config = resolve_autos(load_config(path), has_bfloat16=True)
    backbone = build_backbone(config.model, config.views.image_size, config.run.seed)
    check_stages(config.resolved_stages(), num_samples=2_000_000, backbone=backbone, world_size=1)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if name_of(path) in SHARE else pytest.mark.soak, id=name_of(path)) for path in PATHS],
)
def test_trains(path: Path, tmp_path: Path, shared_data: Path) -> None:
    config = load_config(path)
    data = shrunken_data(
        shared_data / images_of(config), tmp_path / "data.parquet", config.data.split, config.data.heldout_split
    )
    small = write_config(tmp_path / "small.yaml", shrunken(path, data, tmp_path / "run"))
    code, message = run_to_message(small, [f"data.cache_directory={tmp_path / 'cache'}"])
    assert code == 0, message
    assert list((tmp_path / "run/assignments").glob("*-final.parquet"))
