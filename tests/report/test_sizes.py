"""Sizes of clusters as charts: what their curves say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcdist.report.blocks import Block, Chart, LineChart, Sentence, StackedBars
from dcdist.report.history import read_history
from dcdist.report.sizes import MOST_CLUSTERINGS, size_blocks
from dcdist.run_directory import RunDirectory
from tests.report.made_runs import make_run, record, write_assignments, write_attempt


def blocks_of(folder: Path) -> tuple[Block, ...]:
    run = RunDirectory(str(folder))
    return size_blocks(run.storage, read_history(run))


def charts_of(folder: Path) -> dict[str, Chart]:
    return {block.title: block for block in blocks_of(folder) if isinstance(block, LineChart | StackedBars)}


def clusters_of_sizes(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def clustered(folder: Path, epochs: dict[int, list[int]], num_clusters: int) -> None:
    """A run with clusterings of these sizes."""
    records = [
        record("clustering", epoch, 10 * epoch, epoch + 1, head=0, num_clusters=num_clusters) for epoch in epochs
    ]
    write_attempt(folder, 1, 0, None, records)
    for epoch, sizes in epochs.items():
        write_assignments(folder / "assignments" / f"clusters-{epoch}.parquet", [clusters_of_sizes(*sizes)])


def test_few_clusters_have_a_line_a_rank(tmp_path: Path) -> None:
    clustered(tmp_path, {0: [5, 1, 4], 2: [2, 2, 6], 10: [3, 7]}, num_clusters=3)
    chart = charts_of(tmp_path)["Cluster sizes over epochs"]
    assert isinstance(chart, LineChart)
    assert [line.name for line in chart.lines] == ["largest", "2.", "smallest"]
    assert [line.x.tolist() for line in chart.lines] == [[0, 2, 10]] * 3
    assert [line.y.tolist() for line in chart.lines] == [[5, 6, 7], [4, 2, 3], [1, 2, 0]]  # one of three is empty


def test_many_clusters_have_bands(tmp_path: Path) -> None:
    clustered(tmp_path, {0: list(range(1, 12)), 1: [6] * 11}, num_clusters=11)
    chart = charts_of(tmp_path)["Cluster sizes over epochs"]
    assert isinstance(chart, LineChart)
    outer, inner = chart.bands
    (median,) = chart.lines
    assert (outer.low.tolist(), outer.high.tolist()) == ([1, 6], [11, 6])
    assert (inner.low.tolist(), inner.high.tolist()) == ([2, 6], [10, 6])
    assert median.y.tolist() == [6, 6]


def test_sizes_by_rank_are_of_the_first_the_middle_and_the_last(tmp_path: Path) -> None:
    clustered(tmp_path, {epoch: [epoch + 1, 3, 2] for epoch in range(5)}, num_clusters=3)
    chart = charts_of(tmp_path)["Sizes by rank"]
    assert isinstance(chart, LineChart)
    assert {line.name: line.y.tolist() for line in chart.lines} == {
        "before the first epoch": [3, 2, 1],
        "after 2 epochs": [3, 3, 2],
        "after 4 epochs": [5, 3, 2],
    }


def test_head_0_of_several_is_shown(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, None, [record("event", 0, 0, 1)])
    heads = [clusters_of_sizes(4, 2), clusters_of_sizes(1, 5)]
    for epoch in range(2):
        write_assignments(tmp_path / "assignments" / f"clusters-{epoch}.parquet", heads)
    chart = charts_of(tmp_path)["Cluster sizes over epochs"]
    assert isinstance(chart, LineChart)
    assert [line.y.tolist() for line in chart.lines] == [[4, 4], [2, 2]]
    assert "Head 0 of 2." in chart.caption


def test_final_clusters_stand_alone(tmp_path: Path) -> None:
    """They may be fewer than those of training."""
    charts = charts_of(make_run(tmp_path / "run", num_images=31))
    final = charts["Sizes of the final clusters"]
    assert isinstance(final, StackedBars)
    assert final.edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert final.parts[0].heights.tolist() == [11, 10, 10]
    over_epochs = charts["Cluster sizes over epochs"]
    assert isinstance(over_epochs, LineChart)
    assert over_epochs.lines[0].x.tolist() == [0, 1, 2]


def test_of_many_clusterings_some_are_read(tmp_path: Path) -> None:
    clustered(tmp_path, {epoch: [2, 1] for epoch in range(100)}, num_clusters=2)
    chart = charts_of(tmp_path)["Cluster sizes over epochs"]
    assert isinstance(chart, LineChart)
    assert len(chart.lines[0].x) == MOST_CLUSTERINGS
    assert chart.lines[0].x[[0, -1]].tolist() == [0, 99]
    assert f"{MOST_CLUSTERINGS} of 100 clusterings" in chart.caption


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"PAR1" * 1000])
def test_a_damaged_file_is_named_and_left_out(tmp_path: Path, content: bytes) -> None:
    clustered(tmp_path, {0: [2, 1], 1: [3], 2: [1, 2]}, num_clusters=2)
    (tmp_path / "assignments" / "clusters-1.parquet").write_bytes(content)
    warning, chart, *_ = blocks_of(tmp_path)
    assert warning == Sentence("Damaged and left out: assignments/clusters-1.parquet.", warns=True)
    assert isinstance(chart, LineChart)
    assert chart.lines[0].x.tolist() == [0, 2]


def test_one_clustering_alone_has_no_course(tmp_path: Path) -> None:
    clustered(tmp_path, {0: [2, 1]}, num_clusters=2)
    assert list(charts_of(tmp_path)) == ["Sizes by rank"]


def test_nothing_has_been_clustered(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, None, [record("event", 0, 0, 1)])
    assert blocks_of(tmp_path) == (Sentence("No clustering has been written yet."),)


def test_skewed_sizes_get_a_logarithmic_axis_which_empty_clusters_forbid(tmp_path: Path) -> None:
    clustered(tmp_path / "skewed", {0: [1000, 1], 1: [1000, 2]}, num_clusters=2)
    clustered(tmp_path / "empty", {0: [1000, 1], 1: [1000]}, num_clusters=2)
    for name, is_logarithmic in {"skewed": True, "empty": False}.items():
        chart = charts_of(tmp_path / name)["Cluster sizes over epochs"]
        assert isinstance(chart, LineChart)
        assert chart.log_y is is_logarithmic
