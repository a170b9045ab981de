"""What a run did when: phases, restarts and how each attempt ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from textwrap import shorten

import numpy as np

from dcdist.errors import ExitCode
from dcdist.metrics.jsonl import Record
from dcdist.metrics.progress import format_duration
from dcdist.report.blocks import (
    Block,
    Chart,
    Ending,
    Folded,
    Lane,
    Part,
    Restart,
    Segment,
    Sentence,
    StackedBars,
    Table,
    TimeLine,
)
from dcdist.report.history import AttemptHistory, History, number_in, numbers_in
from dcdist.report.training import EPOCHS, speed_blocks

_STARTING = "starting"
_BETWEEN = "saving and else"
_SCORING = "scores at the end"
_WORDS = {
    "scan": "looking for damaged images",
    "features": "features",
    "reduce": "PCA",
    "cluster": "clustering",
    "train": "training",
    "readout": "final clustering",
}
_ORDER = (_STARTING, *_WORDS.values())  # others follow; the place of each is its colour
MOST_BARS = 100
_LONGEST_REASON = 160  # letters
MOST_ATTEMPTS = 12  # that the table shows unfolded
_FINEST = 1000  # parts of the time line that can be told apart


@dataclass(frozen=True)
class Span:
    """An attempt in time, unix seconds."""

    attempt: AttemptHistory
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        return self.stop - self.start


@dataclass(frozen=True)
class Busy:
    """Some time that an attempt spent with one thing."""

    what: str
    start: float
    stop: float


def time_blocks(history: History) -> tuple[Block, ...]:
    """The time line, the times of phases by epoch, where the time went, and the attempts."""
    spans = attempt_spans(history)
    if not spans:
        return (Sentence("Nothing says yet when the run began."),)
    blocks: list[Block] = [_time_line(spans)]
    stages = history.stages()
    for stage in stages:
        where = f", stage {stage}" if len(stages) > 1 else ""
        blocks += [*_phases_by_epoch(history, stage, where), *speed_blocks(history, stage, where)]
    return (*blocks, _shares(spans), *_attempts(spans))


def attempt_spans(history: History) -> list[Span]:
    """When each attempt began and ended; of one without a recorded end the last that is known of it."""
    spans = []
    for attempt in history.attempts:
        began, ended = _instant(attempt.description.get("began")), _instant(attempt.ended.get("when"))
        times = [time for record in attempt.records if (time := number_in(record, "time")) is not None]
        beat = number_in(attempt.heartbeat, "time")
        known = [time for time in (began, *times, beat, ended) if time is not None]
        if known:
            start = began if began is not None else min(known)
            spans.append(Span(attempt, start, max(start, ended if ended is not None else max(known), *times[-1:])))
    return spans


def ending(attempt: AttemptHistory, is_last: bool = False) -> Ending | None:
    """How an attempt ended; None for the last one where nothing is recorded, which may be running still."""
    code = number_in(attempt.ended, "exit_code")
    if code is None:
        return None if is_last else "killed"
    named: dict[int, Ending] = {ExitCode.DONE: "done", ExitCode.RUN_AGAIN: "preempted", ExitCode.STOPPED: "stopped"}
    return named.get(int(code), "failed")


def busy_times(span: Span) -> Iterator[Busy]:
    """What an attempt did: from each begin of a phase to the next record that ends it."""
    what, since, is_over = _STARTING, span.start, False
    for record in sorted(span.attempt.records, key=lambda record: number_in(record, "time") or 0.0):
        at = min(max(number_in(record, "time") or 0.0, since), span.stop)
        following = _following(record)
        if following is not None:
            yield Busy(what, since, at)
            what, since = following, at
            is_over = record.get("event") == "stage_done"
    yield Busy(_SCORING if is_over else what, since, span.stop)


def _following(record: Record) -> str | None:
    """What the run does after a record; None where it goes on with the same."""
    event = record.get("event")
    if event == "phase":
        phase = str(record.get("phase"))
        return _SCORING if phase == "score" else _WORDS.get(phase, phase)
    return _BETWEEN if record["kind"] == "epoch" or event in ("stage_begin", "stage_done") else None


def _time_line(spans: list[Span]) -> Chart:
    found = [busy for span in spans for busy in busy_times(span)]
    names = {busy.what for busy in found if busy.stop > busy.start}
    known = [name for name in _ORDER if name in names]
    others = sorted(names - set(_ORDER) - {_BETWEEN, _SCORING})
    lanes = [*known, *others, *(name for name in (_SCORING, _BETWEEN) if name in names)]
    seconds = sum(span.seconds for span in spans)
    segments: list[Segment] = []
    newest: dict[int, int] = {}  # where the last segment of a lane is
    restarts = []
    offset = 0.0
    for number, span in enumerate(spans):
        for busy in busy_times(span):
            if busy.stop <= busy.start:
                continue
            lane = lanes.index(busy.what)
            start, stop = offset + busy.start - span.start, offset + busy.stop - span.start
            last = newest.get(lane)
            if last is not None and start - segments[last].stop < seconds / _FINEST:
                segments[last] = Segment(lane, segments[last].start, stop)
            else:
                newest[lane] = len(segments)
                segments.append(Segment(lane, start, stop))
        offset += span.seconds
        if number + 1 < len(spans):
            restarts.append(Restart(offset, ending(span.attempt) or "killed"))
    waited = sum(max(0.0, after.start - before.stop) for before, after in pairwise(spans))
    caption = f"{format_duration(seconds)} of running" + (
        f" in {len(spans)} attempts; {format_duration(waited)} of waiting between them left out."
        if len(spans) > 1
        else " in one attempt."
    )
    coloured = tuple(Lane(name, _colour(name, others)) for name in lanes)
    return TimeLine("Time line", caption, coloured, tuple(segments), tuple(restarts), seconds)


def _phases_by_epoch(history: History, stage: str, where: str) -> Iterator[Chart]:
    records = list(history.of_kind("epoch", stage))
    if not records:
        return
    times = [numbers_in(record, "seconds") for record in records]
    epochs = np.array([record["epoch"] for record in records])
    first, last = int(epochs.min()), int(epochs.max()) + 1
    width = -(-(last - first) // MOST_BARS)
    bars = (epochs - first) // width
    counts = np.maximum(np.bincount(bars), 1)
    named = {_WORDS.get(name, name): name for one in times for name in one}
    others = sorted(set(named) - set(_ORDER))
    parts = tuple(
        Part(name, np.bincount(bars, [one.get(named[name], 0.0) for one in times]) / counts, _colour(name, others))
        for name in [*(name for name in _ORDER if name in named), *others]
    )
    if not parts:
        return
    yield StackedBars(
        f"phases{where}",
        f"Time of each epoch{where}",
        "Seconds of each phase." + (f" Means of {width} epochs a bar." if width > 1 else ""),
        *(EPOCHS, "seconds"),
        first + width * np.arange(len(counts) + 1, dtype=float),
        parts,
    )


def _colour(name: str, others: list[str]) -> int:
    """The same in the time line and in the bars."""
    return (*_ORDER, _SCORING, _BETWEEN, *others).index(name)


def _shares(spans: list[Span]) -> Table:
    totals: dict[str, float] = {}
    for span in spans:
        for busy in busy_times(span):
            totals[busy.what] = totals.get(busy.what, 0.0) + busy.stop - busy.start
    everything = max(sum(totals.values()), 1e-9)
    rows = tuple(
        (what, _seconds(seconds), f"{seconds / everything:.1%}")
        for what, seconds in sorted(totals.items(), key=lambda item: -item[1])
    )
    note = "All attempts, what they repeated included. Saving and else: checkpoints, and all that is no phase."
    return Table("Where the time went", ("", "time", "share"), rows, note)


def _attempts(spans: list[Span]) -> Iterator[Block]:
    header = ("attempt", "ended", "ran for", "waited before", "steps repeated", "processes", "began (UTC)", "reason")
    rows = []
    for number, span in enumerate(spans):
        description, is_last = span.attempt.description, number + 1 == len(spans)
        rows.append(
            (
                str(span.attempt.number),
                _ended(span.attempt, is_last),
                _seconds(span.seconds),
                format_duration(max(0.0, span.start - spans[number - 1].stop)) if number else "-",
                f"{int(number_in(description, 'repeated_steps') or 0):,}",
                str(description.get("num_processes", "not known")),
                datetime.fromtimestamp(span.start, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                shorten(str(span.attempt.ended.get("reason") or "-"), _LONGEST_REASON, placeholder=" …"),
            )
        )
    if len(rows) <= MOST_ATTEMPTS:
        yield Table("Attempts", header, tuple(rows))
        return
    yield Table("Attempts", header, tuple(rows[-MOST_ATTEMPTS:]), f"The newest {MOST_ATTEMPTS} of {len(rows)}.")
    earlier = Table("Earlier attempts", header, tuple(rows[:-MOST_ATTEMPTS]))
    yield Folded(f"The {len(rows) - MOST_ATTEMPTS} attempts before", blocks=(earlier,))


def _ended(attempt: AttemptHistory, is_last: bool) -> str:
    return ending(attempt, is_last) or "running or killed"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}\u00a0s" if seconds < 10 else format_duration(seconds)


def _instant(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
