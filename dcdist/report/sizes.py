"""Sizes of clusters over epochs, as charts.

Shapes: T clusterings, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dcdist.report.blocks import (
    Band,
    Block,
    Chart,
    FloatArray,
    Line,
    LineChart,
    Part,
    Sentence,
    StackedBars,
    blocks_or,
)
from dcdist.report.clusterings import UNREADABLE, Sizes, after, list_clusterings, read_sizes, recorded_num_clusters
from dcdist.report.history import History
from dcdist.report.training import EPOCHS, balance_blocks
from dcdist.storage import Storage

MOST_CLUSTERINGS = 40  # of a stage that are read: a file of a million images takes a moment
FEW_CLUSTERS = 6  # so many have a line each
MOST_BARS = 50  # clusters that have a bar each
_RANKS = 200  # points of a curve of sizes by rank
_RANK_AXES = ("rank of the cluster by size", "images in a cluster")


def size_blocks(storage: Storage, history: History) -> tuple[Block, ...]:
    """For each stage: sizes over epochs, sizes by rank, balance."""
    files = list_clusterings(storage, history.stages())
    stages = list(dict.fromkeys([*history.stages(), *(file.stage for file in files)]))
    blocks: list[Block] = []
    for stage in stages:
        where = f", stage {stage}" if len(stages) > 1 else ""
        own = [file for file in files if file.stage == stage]
        shown = [own[i] for i in np.unique(np.linspace(0, len(own) - 1, MOST_CLUSTERINGS).round().astype(int)) if own]
        found, damaged = [], []
        for file in shown:
            try:
                found.append(read_sizes(storage, file, recorded_num_clusters(history, file)))
            except UNREADABLE:
                damaged.append(file.path)
        if damaged:
            named = ", ".join(damaged[:3]) + (f" and {len(damaged) - 3} more" if len(damaged) > 3 else "")
            blocks.append(Sentence(f"Damaged and left out: {named}.", warns=True))
        note = f" {len(shown)} of {len(own)} clusterings, evenly spread." if len(shown) < len(own) else ""
        num_heads = max((sizes.num_heads for sizes in found), default=1)
        if num_heads > 1:
            note += f" Head 0 of {num_heads}."
        trained = [sizes for sizes in found if sizes.epoch is not None]
        blocks += [*_over_epochs(trained, where, note), *_by_rank(trained, where, note)]
        blocks += balance_blocks(history, stage, where)
        blocks += [_final(sizes, where) for sizes in found if sizes.epoch is None]
    return blocks_or(blocks, "No clustering has been written yet.")


def _over_epochs(clusterings: list[Sizes], where: str, note: str) -> Iterator[Chart]:
    if len(clusterings) < 2:
        return
    epochs = np.array([sizes.epoch for sizes in clusterings], float)
    counts = {len(sizes.sizes) for sizes in clusterings}
    bands: tuple[Band, ...] = ()
    if len(counts) == 1 and max(counts) <= FEW_CLUSTERS:
        by_rank = np.array([sizes.sizes for sizes in clusterings], float)  # [T, K]
        number = by_rank.shape[1]
        lines = tuple(Line(_rank_name(rank, number), epochs, by_rank[:, rank], rank) for rank in range(number))
        caption = "Each line is a rank, not a cluster: numbers of clusters change from one clustering to the next."
    else:
        low, first, middle, last, high = np.array(
            [np.quantile(s.sizes, (0, 0.1, 0.5, 0.9, 1)) for s in clusterings], float
        ).T
        bands = (Band("smallest to largest", epochs, low, high), Band("middle 80 %", epochs, first, last))
        lines = (Line("median", epochs, middle),)
        known = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
        caption = f"The {known} clusters that training uses, at each clustering."
    log = _is_wide(clusterings)
    yield LineChart(
        f"sizes{where}",
        f"Cluster sizes over epochs{where}",
        caption + note,
        *(EPOCHS, "images in a cluster"),
        lines,
        bands,
        log_y=log,
        lowest=None if log else 0.0,
    )


def _by_rank(clusterings: list[Sizes], where: str, note: str) -> Iterator[Chart]:
    """The first, the middle and the last one."""
    middle = clusterings[len(clusterings) // 2 :][:1]
    picked = list({sizes.epoch: sizes for sizes in (*clusterings[:1], *middle, *clusterings[-1:])}.values())
    if picked:
        caption = "All clusters from the largest to the smallest: a level line is a balanced clustering." + note
        names = [after(sizes.epoch or 0) for sizes in picked]
        yield _rank_chart(f"ranks{where}", f"Sizes by rank{where}", caption, names, picked)


def _final(sizes: Sizes, where: str) -> Chart:
    """Bars of few clusters, a curve of many."""
    number = len(sizes.sizes)
    key, title = f"final{where}", f"Sizes of the final clusters{where}"
    caption = f"The {number:,} clusters that the stage ends with, the largest first."
    if number <= MOST_BARS:
        part = Part("images", sizes.sizes.astype(float))
        return StackedBars(key, title, caption, *_RANK_AXES, np.arange(0.5, number + 1, dtype=np.float64), (part,))
    return _rank_chart(key, title, caption, [""], [sizes])


def _rank_chart(key: str, title: str, caption: str, names: list[str], clusterings: list[Sizes]) -> Chart:
    wide, many = _is_wide(clusterings), max(len(sizes.sizes) for sizes in clusterings) > MOST_BARS
    return LineChart(
        *(f"{key}, logarithmic" if many else key, title, caption, *_RANK_AXES),
        tuple(Line(name, *_ranks(s), colour) for colour, (name, s) in enumerate(zip(names, clusterings, strict=True))),
        log_x=many,
        log_y=wide,
        lowest=None if wide else 0.0,
    )


def _ranks(sizes: Sizes) -> tuple[FloatArray, FloatArray]:
    """Ranks from 1 and their sizes; of many clusters some, spread as a logarithmic axis needs them."""
    number = len(sizes.sizes)
    ranks = np.unique(np.geomspace(1, number, _RANKS).round().astype(int))
    return ranks.astype(float), sizes.sizes[ranks - 1].astype(float)


def _is_wide(clusterings: list[Sizes]) -> bool:
    """Whether sizes span so much that a linear axis would hide the small ones; empty clusters have no logarithm."""
    smallest = min(int(sizes.sizes[-1]) for sizes in clusterings)
    return smallest > 0 and max(int(sizes.sizes[0]) for sizes in clusterings) > 20 * smallest


def _rank_name(rank: int, number: int) -> str:
    if rank == 0:
        return "largest"
    return "smallest" if rank == number - 1 else f"{rank + 1}."
