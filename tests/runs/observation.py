"""What a test may do inside a rank before the run begins: watch it, make it ask more often, let it die."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Imports of dcdist stand in the functions: they are called in ranks, where everything is loaded already.


def ask_at_every_boundary() -> None:
    """Stop requests and newer attempts are seen at the next boundary, however fast the run is."""
    from dcdist.engine.boundary import Boundary

    agree = Boundary.agree

    def asking(self: Any, step: int | None = None) -> Any:
        if self._watch:
            self._watch.answer = max(self._watch.answer, self._watch._ask())
        return agree(self, step)

    Boundary.agree = asking  # type: ignore[method-assign]


@dataclass(frozen=True)
class RecordSteps:
    """Each rank notes, after a step, which samples it has trained on: see `trained_samples`."""

    folder: Path

    def __call__(self) -> None:
        from dcdist.engine.training_step import TrainingStep

        train = TrainingStep.__call__
        rank = int(os.environ["RANK"])

        def recording(self: Any, microbatches: Any, seeds: Any, step_in_stage: int, measured: bool = False) -> Any:
            result = train(self, microbatches, seeds, step_in_stage, measured=measured)
            batches = [batch for microbatch in microbatches for batch in microbatch.values()]
            ids = [sample_id for batch in batches for sample_id in batch.sample_ids.tolist()]
            with (file.folder / f"rank-{rank}.jsonl").open("a") as lines:
                lines.write(json.dumps([step_in_stage, int(os.environ["WORLD_SIZE"]), rank, ids]) + "\n")
            return result

        file = self
        TrainingStep.__call__ = recording  # type: ignore[method-assign]


def trained_samples(folder: Path) -> tuple[dict[int, list[int]], dict[int, int]]:
    """What RecordSteps noted: sample ids of each step in the order of their positions, and each step's world size.

    A step that a rank trained twice, or that not all ranks trained, fails.
    """
    parts: dict[int, dict[int, list[int]]] = {}
    world_sizes: dict[int, int] = {}
    for file in folder.glob("rank-*.jsonl"):
        for line in file.read_text().splitlines():
            step, world_size, rank, ids = json.loads(line)
            assert world_sizes.setdefault(step, world_size) == world_size, f"step {step} was trained in two attempts"
            assert rank not in parts.setdefault(step, {}), f"step {step} was trained twice by rank {rank}"
            parts[step][rank] = ids
    for step, by_rank in parts.items():
        assert sorted(by_rank) == list(range(world_sizes[step])), f"step {step} was trained by ranks {sorted(by_rank)}"
    samples = {
        step: [sample_id for rank in sorted(by_rank) for sample_id in by_rank[rank]]
        for step, by_rank in sorted(parts.items())
    }
    return samples, world_sizes


@dataclass(frozen=True)
class RecordFirstRows:
    """Also keeps the rows that the first clustering gets, a file a rank."""

    folder: Path

    def __call__(self) -> None:
        from dcdist.engine import trainer

        RecordSteps(self.folder)()
        reduce_features = trainer.reduce_features
        file = self.folder / f"rows-{int(os.environ['RANK'])}.npz"

        def recording(*args: Any, **kwargs: Any) -> Any:
            shard, pca = reduce_features(*args, **kwargs)
            if not file.exists():
                np.savez(file, ids=shard.sample_ids.numpy(), rows=shard.features.numpy())
            return shard, pca

        trainer.reduce_features = recording


def first_rows(folder: Path) -> np.ndarray[Any, Any]:
    """The rows [N, d] of RecordFirstRows by sample id."""
    parts = [np.load(file) for file in sorted(folder.glob("rows-*.npz"))]
    ids = np.concatenate([part["ids"] for part in parts])
    assert sorted(ids.tolist()) == list(range(len(ids)))
    return np.concatenate([part["rows"] for part in parts])[np.argsort(ids)]


@dataclass(frozen=True)
class ExitAtFeatures:
    """A rank that dies at its first batch of features, by itself: a bug, no signal."""

    rank: int

    def __call__(self) -> None:
        from dcdist import features

        if int(os.environ["RANK"]) == self.rank:
            features.fault_point = lambda _: os._exit(1)


@dataclass(frozen=True)
class LimitFileSize:
    """A disk that takes no file longer than this."""

    num_bytes: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.num_bytes))
