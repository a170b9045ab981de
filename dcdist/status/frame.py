"""The picture of a run on a terminal, as lines of text for a given width."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from rich.text import Text

from dcdist.metrics.progress import format_duration
from dcdist.status.run_status import RunStatus
from dcdist.status.sparkline import ASCII, Symbols, bar, sparkline
from dcdist.status.story import CHECKPOINT, Event, StageStory, Story, Tone

WIDE = 120  # columns from which events stand beside the figures
MOST_EVENTS = 10  # below the figures
_FEWEST_EVENTS = 3
_LEAST_SPARKLINE = 8  # columns; a narrower one gets the room of its range
_GAP = 3  # columns between figures and events
_LONGEST_LINE = 100  # columns; lines of figures do not become wider
_OLD_PROGRESS_SECONDS = (300.0, 900.0)  # a warning, an alarm
_OLD_CHECKPOINT_INTERVALS = (2.0, 4.0)
_SLOW_SECONDS = 60.0  # what a checkpoint may take besides
_STATES = {"running": "bold green", "done": "bold green", "starting": "bold", "stopped": "bold", "stopping": "bold"}
_TONES: dict[Tone, str] = {"plain": "", "quiet": "dim", "warning": "yellow", "bad": "bold red"}


@dataclass(frozen=True)
class Picture:
    """What there is to draw.

    `stages` are the names of all stages in order, empty where they are not known; `checkpoint_seconds` is the longest
    time between two checkpoints, None where there is none. `remark` is why this is not the newest state.
    """

    status: RunStatus
    story: Story
    read_at: float  # unix seconds
    stages: tuple[str, ...] = ()
    checkpoint_seconds: float | None = None
    remark: str | None = None


def draw(picture: Picture, width: int, height: int, symbols: Symbols) -> list[Text]:
    """Lines of at most `width` columns; as many as `height`, or more where not even three events have room."""
    is_wide = width >= WIDE
    left = min(width * 11 // 20, _LONGEST_LINE) if is_wide else width
    figures = _figures(picture, min(left, _LONGEST_LINE), symbols)
    events = _without_checkpoints_in_a_row(picture.story.events)
    if not is_wide:
        num = min(MOST_EVENTS, max(_FEWEST_EVENTS, height - len(figures) - 1))
        lines = figures + ([Text()] if events else []) + _events(events[-num:], picture.read_at, width)
    else:
        right = _events(events[-len(figures) :], picture.read_at, width - left - _GAP)
        lines = [_beside(one, other, left) for one, other in zip_longest(figures, right)]
    for line in lines:
        line.plain = clean(line.plain, symbols)
        _cut(line, width, symbols)
        line.rstrip()
    return lines


def _figures(picture: Picture, width: int, symbols: Symbols) -> list[Text]:
    status = picture.status
    stage = picture.story.stages.get(status.stage or "")
    lines = [_head(picture, width, symbols)]
    for text, style in ((status.reason, "red"), (picture.remark, "yellow")):
        lines += _wrapped(" ".join(text.split()), width, style)[:3] if text else []
    lines += _listed(", ".join(_position(picture)), width)
    lines += _progress(status, stage, width, symbols)
    if stage is not None:
        rows = _rows(stage, width, symbols)
        lines += [Text(), *rows, Text()] if rows else []
    return [*lines, *_ages(picture, width), *_listed(status.attempts_line(), width)]


def _head(picture: Picture, width: int, symbols: Symbols) -> Text:
    status = picture.status
    clock = time.strftime("%H:%M:%S", time.localtime(picture.read_at))
    room = max(width - len(status.state) - len(clock) - 4, 8)
    run = status.run if len(status.run) <= room else symbols.cut + status.run[len(status.run) - room + 1 :]
    head = Text.assemble((run, "bold"), ": ", (status.state, _STATES.get(status.state, "bold yellow")))
    head.append(" " * (width - head.cell_len - len(clock)))
    return head.append(clock, "dim")


def _position(picture: Picture) -> list[str]:
    parts = picture.status.position()
    stages = picture.stages
    if parts and len(stages) > 1 and parts[0] in stages:
        parts[0] += f" (stage {stages.index(parts[0]) + 1} of {len(stages)})"
    began = picture.story.phase_began
    if len(parts) > 3 and began is not None and parts[-1] == picture.story.phase:
        parts[-1] += f" for {format_duration(max(0.0, picture.read_at - began))}"
    return parts


def _progress(status: RunStatus, stage: StageStory | None, width: int, symbols: Symbols) -> list[Text]:
    """The bar of the stage, by training steps, with the time that is left and the speed."""
    if status.until_step is None or status.step is None:
        return []
    first = min(stage.first_step if stage else 0, status.step)
    ratio = (status.step - first) / max(status.until_step - first, 1)
    words = f" {int(100 * min(ratio, 1)):3d} %"
    if status.remaining_seconds:
        words += f", {format_duration(status.remaining_seconds)} left"
    if status.samples_per_second is not None:
        words += f", {status.samples_per_second:,.0f} samples/s"
    done, left = bar(ratio, max(width - len(words), 8), symbols)
    return [Text.assemble((done, "green"), (left, "dim"), words)]


def _rows(stage: StageStory, width: int, symbols: Symbols) -> list[Text]:
    """A line each for the loss and the balance of clusters: newest value, sparkline, range."""
    balances = stage.balances()
    rows = [
        _row("loss", stage.loss_values(), "{:.4f}", width, symbols, 0.0),
        _row("size entropy", [balance.size_entropy_ratio for balance in balances], "{:.3f}", width, symbols, 0.05),
        _row("largest", [balance.size_max_ratio for balance in balances], "{:.1%}", width, symbols, 0.02),
        _row("NMI previous", [balance.nmi_previous for balance in balances], "{:.3f}", width, symbols, 0.05),
    ]
    found = [row for row in rows if row is not None]
    if balances:
        newest = balances[-1]
        text = f"{newest.num_clusters} clusters, {newest.num_refilled} refilled, {len(balances)} clusterings"
        heads = f"; of {newest.num_heads} heads the worst" if newest.num_heads > 1 else ""
        found.append(Text(text + heads, "dim"))
    return found


def _row(
    label: str, values: Sequence[float | None], form: str, width: int, symbols: Symbols, least_span: float
) -> Text | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = form.format(min(known)), form.format(max(known))
    scale = f"  {low} to {high}" if low != high else ""
    text = Text(f"{label:<12} {form.format(known[-1]):>8}  ")
    if width - len(text) - len(scale) < _LEAST_SPARKLINE:
        scale = ""
    text.append(sparkline(values, width - len(text) - len(scale), symbols, least_span), "cyan")
    return text.append(scale, "dim")


def _ages(picture: Picture, width: int) -> list[Text]:
    """How long ago it saved and went on last, in a colour where that is long."""
    status = picture.status
    is_alive = status.is_active or status.state == "silent"
    progress = status.progress_line()
    lines = (
        _wrapped(progress, width, _age_style(status.progress_age_seconds, _OLD_PROGRESS_SECONDS)) if progress else []
    )
    # What this attempt could not save before it began is not late.
    age, style = status.last_checkpoint_age_seconds, ""
    if picture.checkpoint_seconds is not None and is_alive:
        limits = [count * picture.checkpoint_seconds + _SLOW_SECONDS for count in _OLD_CHECKPOINT_INTERVALS]
        without = status.attempt_age_seconds
        style = _age_style(without if age is None else min(age, without), limits)
    return lines + _wrapped(status.checkpoint_line(), width, style)


def _age_style(seconds: float | None, limits: Sequence[float]) -> str:
    warn, alarm = limits
    if seconds is None or seconds < warn:
        return ""
    return "bold red" if seconds >= alarm else "bold yellow"


def _without_checkpoints_in_a_row(events: Iterable[Event]) -> list[Event]:
    """Of each row the last, with their number: checkpoints are so many that nothing else had room."""
    left: list[Event] = []
    num_checkpoints = 0
    for event in events:
        num_checkpoints = num_checkpoints + 1 if event.text.startswith(CHECKPOINT) else 0
        if num_checkpoints > 1:
            left[-1] = replace(event, text=f"{event.text}, {num_checkpoints - 1} more before")
        else:
            left.append(event)
    return left


def _events(events: Sequence[Event], now: float, width: int) -> list[Text]:
    """A line each; what is bad is said in up to three."""
    lines = []
    for event in events:
        text = event_line(event, now)
        wrapped = textwrap.wrap(text, width, subsequent_indent=" " * 10)[:3] if event.tone == "bad" else [text]
        lines += [Text(line, _TONES[event.tone]) for line in wrapped]
    return lines


def event_line(event: Event, now: float) -> str:
    """An event with its time of day, or with its day where it is older than 12 hours."""
    form = "%H:%M:%S" if now - event.time < 12 * 3600 else "%b %d %H:%M"
    return f"{time.strftime(form, time.localtime(event.time))}  {' '.join(event.text.split())}"


def _beside(one: Text | None, other: Text | None, width: int) -> Text:
    line = one if one is not None else Text()
    if other is None:
        return line
    line.append(" " * (width - line.cell_len + _GAP))
    return line.append_text(other)


def _wrapped(text: str, width: int, style: str = "") -> list[Text]:
    return [Text(line, style) for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def _listed(text: str, width: int) -> list[Text]:
    """Wrapped after commas alone, as far as these are near enough."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) + 2 < width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    whole = [f"{line}," for line in lines[1:-1]] + lines[-1:]
    return [wrapped for line in whole for wrapped in _wrapped(line, width)]


def _cut(line: Text, width: int, symbols: Symbols) -> None:
    if line.cell_len > width:
        line.truncate(width - 1, overflow="crop")
        line.append(symbols.cut)


def clean(text: str, symbols: Symbols) -> str:
    """Without what would move the cursor, and what the terminal cannot show; each character stays one."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text.encode("ascii", "replace").decode() if symbols is ASCII else text
