"""Whole pictures, as text."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dcdist.status.frame import Picture, draw
from dcdist.status.run_status import read_status
from dcdist.status.sparkline import ASCII, BLOCKS, Symbols
from dcdist.status.story import Story
from tests.status.runs import T0, HandWrittenRun, clustering, event, stage_begin, start, step


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HandWrittenRun:
    """Two attempts, of which the first was preempted."""
    monkeypatch.chdir(tmp_path)
    written = HandWrittenRun(Path("runs/mine"))
    first = written.begin()
    written.write(first, start(1, 0), stage_begin(0, 40), clustering(0, 0, 0.95, 0.02, time=T0 + 3))
    written.write(first, *(step(number, 5 - number / 10, T0 + 3 + number) for number in range(1, 17)))
    for number in (8, 12, 16):
        written.write(first, event("checkpoint", number, T0 + 3 + number, name=f"step-{number:08d}-train.0001"))
    written.end(first, 75, "Preempted: SIGTERM asked the run to make room", "SIGTERM")
    second = written.begin(launcher={"name": "slurm", "job": "12_3", "restart_count": 1})
    written.write(second, start(2, 16, T0 + 60, "step-00000016-train.0001"), stage_begin(16, 40, T0 + 60, epoch=2))
    written.write(second, clustering(16, 2, 0.85, 0.06, 0.7, refilled=3, time=T0 + 64))
    written.write(second, event("phase", 16, T0 + 64, 2, phase="train"))
    written.write(second, *(step(number, 5 - number / 10, T0 + 50 + number, 2) for number in range(17, 25)))
    written.write(second, event("collapse", 24, T0 + 74, 2, message="half of the images are in one cluster"))
    values = {"num_epochs": 4, "until_step": 40, "loss": 2.6, "samples_per_second": 1234.5}
    written.beat(second, T0 + 76, epoch=2, step=24, **values)
    return written


def picture(run: HandWrittenRun, **changes: Any) -> Picture:
    story = Story(run.directory)
    story.read(run.directory.attempt_numbers())
    return replace(Picture(read_status(str(run.directory), T0 + 78), story, T0 + 78), **changes)


def lines(drawn: Picture, width: int, height: int = 30, symbols: Symbols = BLOCKS) -> list[str]:
    found = [line.plain for line in draw(drawn, width, height, symbols)]
    assert max(map(len, found)) <= width
    return found


EVENTS = [
    "08:00:00  attempt 1 begins",
    "08:00:00  stage main begins",
    "08:00:03  epoch 1: 100 clusters, 0 refilled",
    "08:00:19  checkpoint step-00000016-train.0001, 2 more before",
    "08:01:00  attempt 2 goes on from step-00000016-train.0001",
    "08:01:04  epoch 3: 100 clusters, 3 refilled, 30% changed",
    "08:01:14  main epoch 3: half of the images are in one",
    "          cluster",
]


def test_narrow(run: HandWrittenRun) -> None:
    assert lines(picture(run), 60) == [
        "runs/mine: running                                  08:01:18",
        "main, epoch 3 of 4, step 24 of 40, train for 14 s",
        "━━━━━━━━━━━━━━━───────────  60 %, 32 s left, 1,234 samples/s",
        "",
        "loss           2.6000  ███▇▇▆▆▅▅▅▄▄▃▃▂▂▁▁▁  2.6000 to 4.9000",
        "size entropy    0.850  █▁  0.850 to 0.950",
        "largest          6.0%  ▁█  2.0% to 6.0%",
        "NMI previous    0.700   ▄",
        "100 clusters, 3 refilled, 2 clusterings",
        "",
        "last sign of progress 2 s ago",
        "no checkpoint yet",
        "attempt 2, 1 restart (SIGTERM 1),",
        "0 steps repeated; 2 processes, slurm job 12_3",
        "",
        *EVENTS,
    ]


def test_wide_has_events_beside(run: HandWrittenRun) -> None:
    left = [
        "runs/mine: running                                                   08:01:18",
        "main, epoch 3 of 4, step 24 of 40, train for 14 s",
        "━━━━━━━━━━━━━━━━━━━━━━━━━──────────────────  60 %, 32 s left, 1,234 samples/s",
        "",
        "loss           2.6000  ███▇▇▇▆▆▆▅▅▅▄▄▄▃▃▃▂▂▂▁▁▁  2.6000 to 4.9000",
        "size entropy    0.850  █▁  0.850 to 0.950",
        "largest          6.0%  ▁█  2.0% to 6.0%",
        "NMI previous    0.700   ▄",
        "100 clusters, 3 refilled, 2 clusterings",
        "",
        "last sign of progress 2 s ago",
        "no checkpoint yet",
        "attempt 2, 1 restart (SIGTERM 1), 0 steps repeated; 2 processes,",
        "slurm job 12_3",
    ]
    expected = [f"{one:<80}{other}".rstrip() for one, other in zip_longest(left, EVENTS, fillvalue="")]
    assert lines(picture(run), 140) == expected


def test_ascii(run: HandWrittenRun) -> None:
    found = lines(picture(run, remark="not \N{EM DASH} now"), 60, symbols=ASCII)
    assert found[1:6] == [
        "not ? now",
        "main, epoch 3 of 4, step 24 of 40, train for 14 s",
        "###############...........  60 %, 32 s left, 1,234 samples/s",
        "",
        "loss           2.6000  ###%%**+++==--..___  2.6000 to 4.9000",
    ]
    assert "\n".join(found).isascii()


def test_narrower_than_it_should_be(run: HandWrittenRun) -> None:
    found = lines(picture(run), 36)
    assert found[1:3] == ["main, epoch 3 of 4, step 24 of 40,", "train for 14 s"]
    assert "loss           2.6000  ██▇▇▆▅▅▄▃▃▂▁▁" in found
    assert "08:00:19  checkpoint step-00000016-…" in found
    for width in range(1, 36):
        lines(picture(run), width)


def test_low_windows_have_the_newest_events(run: HandWrittenRun) -> None:
    assert lines(picture(run), 60, height=20)[15:] == EVENTS[2:]
    assert lines(picture(run), 60, height=5)[15:] == EVENTS[4:]


def test_a_method_without_clusters(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.write(run.begin(), start(1, 0), stage_begin(0, 40), step(10, 4.0), step(20, 4.0))
    run.beat(1, T0 + 78, step=20, until_step=40)
    found = lines(picture(run), 80)
    assert found[1:8] == [
        "main, epoch 1, step 20 of 40, train",
        "━" * 31 + "─" * 32 + "  50 %, 1:18 left",
        "",
        "loss           4.0000  ▄▄",
        "",
        "last sign of progress 0 s ago",
        "no checkpoint yet",
    ]


def test_nothing_is_known_yet(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.begin()
    found = lines(picture(run), 80)
    assert ": silent " in found[0]
    assert found[1:] == ["no checkpoint yet", "attempt 1, 0 restarts, 0 steps repeated; 2 processes, local"]


def test_the_second_stage_has_a_bar_of_its_own(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.write(run.begin(), start(1, 0), stage_begin(0, 100, stage="simclr"), step(100, 4.0, stage="simclr"))
    run.write(1, stage_begin(100, 120, T0 + 50, stage="scan"), step(105, 0.5, stage="scan"))
    run.beat(1, T0 + 60, stage="scan", step=105, until_step=120)
    found = lines(picture(run, stages=("simclr", "scan", "selflabel")), 80)
    assert found[1:5] == [
        "scan (stage 2 of 3), epoch 1, step 105 of 120, train",
        "━" * 15 + "─" * 48 + "  25 %, 30 s left",
        "",
        "loss           0.5000  ▄",
    ]


def test_of_several_heads_the_worst(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.write(run.begin(), start(1, 0), stage_begin(0, 40), clustering(0, 0, 0.9), clustering(0, 0, 0.7, head=1))
    run.beat(1, T0 + 78, step=0, until_step=40)
    found = lines(picture(run), 80)
    assert "size entropy    0.700  ▄" in found
    assert "200 clusters, 0 refilled, 1 clusterings; of 2 heads the worst" in found


def test_escapes_in_messages_do_nothing(tmp_path: Path) -> None:
    run = HandWrittenRun(tmp_path)
    run.write(run.begin(), event("collapse", 0, message="\x1b[2Jgone\n\u202eesrever"))
    run.end(1, 1, "RunError: \x1b]0;title\x07 failed")
    found = lines(picture(run), 80)
    assert found[1] == "RunError: ?]0;title failed"
    assert found[-1] == "08:00:00  main epoch 1: ?[2Jgone ?esrever"


def style_of(drawn: Picture, words: str) -> str:
    (line,) = [line for line in draw(drawn, 80, 30, BLOCKS) if words in line.plain]
    return str(line.style)


@pytest.mark.parametrize(
    ("age", "style"), [(299.0, ""), (300.0, "bold yellow"), (899.0, "bold yellow"), (900.0, "bold red")]
)
def test_old_progress_has_a_colour(run: HandWrittenRun, age: float, style: str) -> None:
    drawn = picture(run)
    drawn = replace(drawn, status=replace(drawn.status, progress_age_seconds=age))
    assert style_of(drawn, "last sign of progress") == style


@pytest.mark.parametrize(
    ("age", "attempt_age", "state", "style"),
    [
        (1259.0, 9999.0, "running", ""),  # two intervals of 600 s, and a minute for the checkpoint itself
        (1260.0, 9999.0, "running", "bold yellow"),
        (2460.0, 9999.0, "silent", "bold red"),
        (9999.0, 1259.0, "running", ""),  # this attempt could not save earlier
        (None, 1260.0, "running", "bold yellow"),
        (9999.0, 9999.0, "done", ""),
    ],
)
def test_an_old_checkpoint_has_a_colour(
    run: HandWrittenRun, age: float | None, attempt_age: float, state: str, style: str
) -> None:
    drawn = picture(run, checkpoint_seconds=600.0)
    name = None if age is None else "step-00000016-train.0001"
    changed: dict[str, Any] = {"last_checkpoint": name, "last_checkpoint_age_seconds": age, "state": state}
    drawn = replace(drawn, status=replace(drawn.status, attempt_age_seconds=attempt_age, **changed))
    assert style_of(drawn, "no checkpoint yet" if age is None else "last checkpoint") == style


def test_no_color_is_heeded(run: HandWrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed() -> str:
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
        for line in draw(picture(run), 80, 30, BLOCKS):
            console.print(line)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", printed())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", printed())
