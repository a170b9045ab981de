"""Attempts, phases and restarts in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdist.report.blocks import Block, Folded, Restart, Segment, Sentence, StackedBars, Table, TimeLine
from dcdist.report.history import read_history
from dcdist.report.overview import state
from dcdist.report.timeline import attempt_spans, time_blocks
from dcdist.run_directory import RunDirectory
from tests.report.made_runs import BEGAN, instant, make_run, record, write, write_attempt


def blocks_of(folder: Path) -> tuple[Block, ...]:
    return time_blocks(read_history(RunDirectory(str(folder))))


def time_line_of(folder: Path) -> TimeLine:
    return next(block for block in blocks_of(folder) if isinstance(block, TimeLine))


def table_of(folder: Path, title: str) -> Table:
    return next(block for block in blocks_of(folder) if isinstance(block, Table) and block.title == title)


def phase(epoch: int, at: float, name: str) -> dict[str, object]:
    return record("event", epoch, 0, at, event="phase", phase=name)


@pytest.fixture
def disturbed(tmp_path: Path) -> Path:
    """Preempted after 100 s, killed 50 s after a wait of 1000 s, stopped, failed, and running."""
    write_attempt(
        *(tmp_path, 1, 0, (100, 75, "Preempted: SIGTERM asked the run to make room")),
        [phase(0, 10, "features"), phase(0, 40, "train")],
    )
    write_attempt(tmp_path, 2, 1100, None, [phase(0, 1105, "train"), record("step", 0, 5, 1150)], repeated_steps=7)
    write_attempt(tmp_path, 3, 1200, (1210, 3, "asked to stop"), [phase(0, 1201, "train")])
    write_attempt(tmp_path, 4, 1300, (1320, 1, "RunError: the loss is not finite"), [])
    write_attempt(tmp_path, 5, 1400, None, [phase(0, 1405, "train")])
    write(tmp_path / "attempts" / "0005.heartbeat", f'{{"time": {BEGAN + 1460}}}')
    return tmp_path


def test_waits_are_left_out_of_the_time_line(disturbed: Path) -> None:
    chart = time_line_of(disturbed)
    assert chart.restarts == (
        Restart(100, "preempted"),
        Restart(150, "killed"),
        Restart(160, "stopped"),
        Restart(180, "failed"),
    )
    assert chart.seconds == 100 + 50 + 10 + 20 + 60
    lanes = [lane.name for lane in chart.lanes]
    assert lanes == ["starting", "features", "training"]
    assert [s for s in chart.segments if lanes[s.lane] == "features"] == [Segment(1, 10, 40)]
    assert [(s.start, s.stop) for s in chart.segments if lanes[s.lane] == "training"] == [
        *((40, 100), (105, 150), (151, 160), (185, 240))
    ]
    assert "5 attempts; 20:20 of waiting" in chart.caption  # 1000 + 50 + 90 + 80 s


def test_the_table_of_attempts(disturbed: Path) -> None:
    table = table_of(disturbed, "Attempts")
    columns = dict(zip(table.header, zip(*table.rows, strict=True), strict=True))
    assert columns["ended"] == ("preempted", "killed", "stopped", "failed", "running or killed")
    assert columns["waited before"] == ("-", "16:40", "50 s", "1:30", "1:20")
    assert columns["steps repeated"] == ("0", "7", "0", "0", "0")
    assert columns["reason"][3] == "RunError: the loss is not finite"


def test_where_the_time_went(disturbed: Path) -> None:
    rows = {name: (seconds, share) for name, seconds, share in table_of(disturbed, "Where the time went").rows}
    assert rows["training"] == ("2:49", f"{169 / 240:.1%}")
    assert rows["features"] == ("30 s", f"{30 / 240:.1%}")
    assert rows["starting"] == ("41 s", f"{41 / 240:.1%}")


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (0, "done", "done"),
        (75, "Preempted: SIGTERM asked the run to make room", "Preempted: SIGTERM asked the run to make room"),
        (75, "PeerLost: rank 1 is gone", "preempted: PeerLost: rank 1 is gone"),
        (3, "asked to stop", "stopped: asked to stop"),
        (2, "no such split", "failed: no such split"),
        (-9, "", "failed"),
    ],
)
def test_the_state_of_a_run_that_ended(tmp_path: Path, code: int, reason: str, words: str) -> None:
    write_attempt(tmp_path, 1, 0, (10, code, reason), [])
    assert state(read_history(RunDirectory(str(tmp_path)))) == words


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, (10, 1, "because " * 100), [])
    (row,) = table_of(tmp_path, "Attempts").rows
    assert row[-1].endswith("because …")
    assert len(row[-1]) <= 160
    assert len(state(read_history(RunDirectory(str(tmp_path))))) < 320


def test_the_state_of_a_run_without_an_end(disturbed: Path) -> None:
    assert state(read_history(RunDirectory(str(disturbed)))) == "running, or killed: no end is recorded"


def test_seconds_of_phases_by_epoch(tmp_path: Path) -> None:
    chart = next(block for block in blocks_of(make_run(tmp_path / "run")) if isinstance(block, StackedBars))
    assert chart.edges.tolist() == [0, 1, 2, 3]
    assert {part.name: part.heights.tolist() for part in chart.parts} == {
        "features": [2, 2, 2],
        "clustering": [1, 1, 1],
        "training": [6, 6, 6],
    }


def test_many_epochs_share_bars(tmp_path: Path) -> None:
    records = [record("epoch", epoch, epoch, epoch + 1, seconds={"train": float(epoch)}) for epoch in range(250)]
    write_attempt(tmp_path, 1, 0, None, records)
    chart = next(block for block in blocks_of(tmp_path) if isinstance(block, StackedBars))
    (part,) = chart.parts
    assert len(part.heights) == 84
    assert part.heights[:2].tolist() == [1, 4]  # means of 0, 1, 2 and of 3, 4, 5
    assert part.heights[-1] == 249
    assert "Means of 3 epochs a bar." in chart.caption


def test_scores_come_after_the_last_stage_alone(tmp_path: Path) -> None:
    done = {"event": "stage_done"}
    first = [phase(0, 1, "train"), record("event", 1, 0, 10, "a", **done)]
    second = [record("event", 0, 0, 12, "b", event="stage_begin"), phase(0, 13, "train")]
    write_attempt(tmp_path, 1, 0, (40, 0, "done"), [*first, *second, record("event", 1, 0, 30, "b", **done)])
    chart = time_line_of(tmp_path)
    lanes = [lane.name for lane in chart.lanes]
    found = {lane: [(s.start, s.stop) for s in chart.segments if lanes[s.lane] == lane] for lane in lanes}
    assert found["scores at the end"] == [(30, 40)]
    assert found["saving and else"] == [(10, 13)]


def test_many_attempts_are_folded(tmp_path: Path) -> None:
    for number in range(1, 41):
        write_attempt(tmp_path, number, 10 * number, (10 * number + 5, 75, "Preempted"), [])
    blocks = blocks_of(tmp_path)
    assert len(table_of(tmp_path, "Attempts").rows) == 12
    (folded,) = (block for block in blocks if isinstance(block, Folded))
    assert folded.summary == "The 28 attempts before"
    assert len(folded.blocks[0].rows) == 28


def test_clocks_that_disagree_cost_no_more_than_their_difference(tmp_path: Path) -> None:
    """The next attempt began, by its machine's clock, before this one ended."""
    write_attempt(tmp_path, 1, 0, (100, 75, "Preempted"), [phase(0, -5, "train")])
    write_attempt(tmp_path, 2, 90, (120, 0, "done"), [phase(0, 500, "train")])
    spans = attempt_spans(read_history(RunDirectory(str(tmp_path))))
    assert [span.seconds for span in spans] == [100, 410]
    assert all(0 <= s.start <= s.stop <= 510 for s in time_line_of(tmp_path).segments)


def test_nothing_is_known_of_time(tmp_path: Path) -> None:
    write(tmp_path / "attempts" / "0001.json", '{"attempt": 1, "began": "yesterday"}')
    assert blocks_of(tmp_path) == (Sentence("Nothing says yet when the run began."),)


def test_an_attempt_that_has_just_begun(tmp_path: Path) -> None:
    write(tmp_path / "attempts" / "0001.json", f'{{"attempt": 1, "began": "{instant(0)}"}}')
    assert time_line_of(tmp_path).seconds == 0
