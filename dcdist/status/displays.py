"""Where pictures of a run go: a terminal, plain lines, lines of JSON."""

from __future__ import annotations

import locale
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live

from dcdist.metrics.jsonl import to_strict_json
from dcdist.metrics.progress import format_duration
from dcdist.status.frame import Picture, clean, draw, event_line
from dcdist.status.run_status import ENDED, RunStatus
from dcdist.status.sparkline import ASCII, BLOCKS, Symbols
from dcdist.status.story import Event, Story

_PLAIN_EVERY_SECONDS = 60.0  # between two lines on the position alone
_RESIZED_WITHIN_SECONDS = 0.25


class Display(Protocol):
    """Where pictures go."""

    def show(self, picture: Picture) -> None:
        """Shows the newest picture."""
        ...

    def wait(self, seconds: float) -> None:
        """Passes the time until the next one."""
        ...

    def close(self, last: Picture | None) -> None:
        """Leaves the last picture behind, where there is one."""
        ...


def symbols_for(console: Console) -> Symbols:
    """Block characters where the output's encoding and the locale both have them.

    Python writes UTF-8 in the C locale, too, whatever the terminal shows.
    """
    for encoding in (console.encoding, locale.getencoding()):
        try:
            (BLOCKS.levels + BLOCKS.done + BLOCKS.left + BLOCKS.cut).encode(encoding)
        except (LookupError, UnicodeEncodeError):
            return ASCII
    return BLOCKS


class Screen:
    """The terminal's other screen, as an editor uses it: pictures replace each other there. The last one stays."""

    def __init__(self, console: Console, symbols: Symbols) -> None:
        self._console = console
        self._symbols = symbols
        self._live: Live | None = None
        self._picture: Picture | None = None

    def show(self, picture: Picture) -> None:
        self._picture = picture
        group = self._drawn(picture, self._console.height)
        if self._live is None:
            self._live = Live(group, console=self._console, screen=True, auto_refresh=False)
            self._live.start()
        self._live.update(group, refresh=True)

    def wait(self, seconds: float) -> None:
        """A window that changes its size is drawn anew at once."""
        end, size = time.monotonic() + seconds, self._console.size
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _RESIZED_WITHIN_SECONDS))
            if self._console.size != size and self._picture is not None:
                size = self._console.size
                self.show(self._picture)

    def close(self, last: Picture | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if last is not None:
            self._console.print(self._drawn(last, self._console.height))

    def _drawn(self, picture: Picture, height: int) -> Group:
        return Group(*draw(picture, self._console.width, height, self._symbols))


class PlainLines:
    """For pipes and logs: a picture at the beginning and at the end; between them a line for each event, state and
    epoch, and for the position once a minute.
    """

    _WIDTH, _HEIGHT = 100, 40

    def __init__(self, write: Callable[[str], None], symbols: Symbols) -> None:
        self._write = write
        self._symbols = symbols
        self._first: Picture | None = None
        self._seen: tuple[Any, ...] = ()
        self._num_events = 0
        self._said_at = 0.0

    def show(self, picture: Picture) -> None:
        status, now = picture.status, picture.read_at
        seen = (status.state, status.attempt, status.stage, status.epoch, picture.remark)
        if self._first is None:
            self._first, self._said_at = picture, now
            self._draw(picture)
            self._write("")
        else:
            for event in _new_events(picture.story, self._num_events):
                self._say(event, now)
            if seen != self._seen or now - self._said_at >= _PLAIN_EVERY_SECONDS:
                self._say(Event(now, picture.remark or _summary(status)), now)
                self._said_at = now
        self._seen, self._num_events = seen, picture.story.num_events

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self, last: Picture | None) -> None:
        if last is not None and last is not self._first and last.status.state in ENDED:
            self._write("")
            self._draw(last)

    def _say(self, event: Event, now: float) -> None:
        self._write(clean(event_line(event, now), self._symbols))

    def _draw(self, picture: Picture) -> None:
        for line in draw(picture, self._WIDTH, self._HEIGHT, self._symbols):
            self._write(line.plain)


class JsonLines:
    """An object a picture: that of `dcdist status --json`, and beside it

    - "time": of the reading, unix seconds,
    - "clustering": the newest of the stage (`Balance`), null where there is none,
    - "events": those since the object before (`Event`), in the first object the newest ten,
    - "remark": why this is not the newest state, else null.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._num_events: int | None = None

    def show(self, picture: Picture) -> None:
        num_seen = max(0, picture.story.num_events - 10) if self._num_events is None else self._num_events
        stage = picture.story.stages.get(picture.status.stage or "")
        balances = stage.balances() if stage else []
        content = {
            "time": picture.read_at,
            **picture.status.to_json(),
            "clustering": asdict(balances[-1]) if balances else None,
            "events": [asdict(event) for event in _new_events(picture.story, num_seen)],
            "remark": picture.remark,
        }
        self._num_events = picture.story.num_events
        self._write(to_strict_json(content))

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self, last: Picture | None) -> None:
        """All is written."""


def _new_events(story: Story, num_seen: int) -> list[Event]:
    num_kept = len(story.events)
    return list(islice(story.events, max(0, num_kept - (story.num_events - num_seen)), None))


def _summary(status: RunStatus) -> str:
    """The state, position and figures in a line."""
    parts = [status.state, *status.position()]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.samples_per_second is not None:
        parts.append(f"{status.samples_per_second:,.0f} samples/s")
    if status.remaining_seconds:
        parts.append(f"{format_duration(status.remaining_seconds)} left")
    return ", ".join(parts)
