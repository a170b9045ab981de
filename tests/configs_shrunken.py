"""A config of configs/ made small: the same methods, stages and views, on a few images and a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdist.config.load import load_config
from dcdist.config.schema import ExperimentConfig, merge

NUM_TRAIN, NUM_TEST = 24, 6
BATCH_SIZE = 8


def shrunken_data(source: Path, destination: Path, train: str | None, heldout: str | None) -> Path:
    """The first images of a Parquet file, as rows of the splits that a config names."""
    table = pq.read_table(source, columns=["image", "label", "label_name"]).slice(0, NUM_TRAIN + NUM_TEST)
    splits = [train or "train"] * NUM_TRAIN + [heldout or "test"] * NUM_TEST
    pq.write_table(table.append_column("split", pa.array(splits)), destination)
    return destination


def shrunken(path: Path, data: Path, run: Path) -> dict[str, Any]:
    """The values of the config at `path` for so few images: K, components, epochs and batches to fit, nothing else."""
    values: dict[str, Any] = load_config(path).model_dump(mode="json")
    small = _shrink(values)
    small["stages"] = [_shrink(stage) for stage in values["stages"]]
    return merge(
        small,
        {
            "run": {"dir": str(run)},
            "data": {"root": str(data), "num_workers": 0},
            "launch": {"num_processes": 1, "device": "cpu", "threads_per_process": 1},
            "metrics": {"tensorboard": False, "progress": False},
            "evaluation": {"summary": False},
        },
    )


def _shrink(values: dict[str, Any]) -> dict[str, Any]:
    """Of the top level, of a stage, or of a part of a joint one: the keys that it has."""
    small = dict(values)
    limits = {
        # A learning rate belongs to its batch size.
        "train": {
            "num_epochs": 1,
            "batch_size": BATCH_SIZE,
            "microbatch_size": BATCH_SIZE // 2,
            "learning_rate": 0.01,
        },
        "features": {"pca_dimensions": 8, "batch_size": 16},
        "readout": {"num_clusters": 4, "merge_to": 2, "pca_dimensions": 8, "num_restarts": 1},
        "swav": {"queue_length": 8, "num_prototypes": 16, "hidden": 64},
        "deepcluster_v2": {"hidden": 64},
        "scan": {"num_neighbors": 3},
        "selflabel": {"threshold": 0.0},
        "jigsaw": {"tile_features": 32, "hidden": 64},
    }
    for section, keys in limits.items():
        if section in values:
            own = values[section]
            small[section] = {**own, **{key: _least(own.get(key), keys[key]) for key in keys if key in own}}
    if "train" in values:
        small["train"]["steps_per_epoch"] = 2
    if "clustering" in values:
        counts = values["clustering"].get("num_clusters")
        fewer = [_least(count, 6) for count in counts] if isinstance(counts, list) else _least(counts, 6)
        small["clustering"] = {**values["clustering"], **({} if counts is None else {"num_clusters": fewer})}
    if "joint" in values:
        small["joint"] = {"parts": [_shrink(part) for part in values["joint"].get("parts", [])]}
    return small


def _least(value: Any, limit: Any) -> Any:
    """A number cut down to the limit; null and "auto" stay."""
    return value if isinstance(value, bool) or not isinstance(value, int | float) else min(value, limit)


def config_paths(folder: Path) -> list[Path]:
    """Every config that is run; what begins with an underscore is a base of others."""
    return sorted(path for path in folder.rglob("*.yaml") if not path.name.startswith("_"))


def images_of(config: ExperimentConfig) -> str:
    """The shared data that stands for the config's own: photographs of its size."""
    return "imagenette224_5k.parquet" if config.views.image_size > 64 else "cifar10_catsdogs.parquet"
