"""`dcdist status RUN --watch`: how a run stands, again and again, until it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import yaml
from rich.console import Console

from dcdist.errors import UsageError
from dcdist.run_directory import ATTEMPTS, CONFIG, RunDirectory
from dcdist.status.displays import Display, JsonLines, PlainLines, Screen, symbols_for
from dcdist.status.frame import Picture
from dcdist.status.run_status import ENDED, RunStatus, StatusReader
from dcdist.status.story import Story

EVERY_SECONDS = 2.0
EVERY_SECONDS_BEHIND_URL = 30.0  # each look asks a server for some small files
BEFORE_THE_FIRST_ATTEMPT = {CONFIG, "slurm"}  # what a run's folder may hold then; slurm: of a submission


class Watcher:
    """Takes pictures of a run; each reads what is new.

    Args:
        url: the run directory, which need not exist yet.
        clock: unix seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._reader = StatusReader(url)
        self._story = Story(self._reader.run)
        self._clock = clock
        self._plan: tuple[tuple[str, ...], float | None] | None = None
        self._last: Picture | None = None
        self._has_waited = False

    @property
    def every_seconds(self) -> float:
        """A considerate time between two pictures."""
        is_local = self._reader.run.storage.local_path() is not None
        return EVERY_SECONDS if is_local else EVERY_SECONDS_BEHIND_URL

    def missing(self) -> str | None:
        """What is waited for, as a sentence, where there is no run yet but may soon be one: a job waits in a queue.

        Raises:
            UsageError: there is something else in the folder.
            OSError: the storage fails at the first look.
        """
        run = self._reader.run
        try:
            if run.attempt_numbers():
                return None
            names = {name for name in run.storage.list() if not name.startswith(".")}
        except OSError as error:
            if not self._has_waited:
                raise
            return f"{run} cannot be read for now, tried again: {error}"
        # What comes now is of the run, whose first attempt a cache of the file system may still hide.
        others = names - BEFORE_THE_FIRST_ATTEMPT
        if others and ATTEMPTS not in names and not self._has_waited:
            raise UsageError(f"{run} has no attempts, but {min(others)}: is this a run's folder (run.dir)?")
        self._has_waited = True
        return f"{run} has no attempts yet: waiting for the run to begin (Ctrl-C leaves)"

    def look(self) -> Picture:
        """The run now; where its storage fails for the moment, as it was seen last, and a remark.

        Raises:
            UsageError: there is no run.
            RunError: the file of an attempt is damaged.
            OSError: the storage fails at the first look.
        """
        now = self._clock()
        try:
            status = self._reader.read(now)
            self._story.read(self._reader.attempts)
            if self._plan is None:
                self._plan = _read_plan(self._reader.run)
        except OSError as error:
            if self._last is None:
                raise
            return replace(self._last, remark=f"cannot be read for now, tried again: {error}")
        self._last = Picture(status, self._story, now, *(self._plan or ()))
        return self._last


def watch(watcher: Watcher, display: Display, every_seconds: float, say: Callable[[str], None]) -> None:
    """Shows a run from its beginning, which may be waited for, until it has ended or Ctrl-C is pressed.

    Args:
        watcher: takes the pictures; its errors end the watching.
        display: where they go.
        every_seconds: between two of them.
        say: takes sentences for people that belong to no picture.
    """
    picture, said, advice = None, None, None
    try:
        while (missing := watcher.missing()) is not None:
            if missing != said:
                say(missing)
            said = missing
            display.wait(every_seconds)
        while True:
            picture = watcher.look()
            display.show(picture)
            if picture.status.state in ENDED and picture.remark is None:
                advice = _how_to_go_on(picture.status)
                break
            display.wait(every_seconds)
    except KeyboardInterrupt:  # how one leaves
        pass
    finally:
        display.close(picture)
    if advice is not None:
        say(advice)


def _how_to_go_on(status: RunStatus) -> str | None:
    """A Kubernetes Job starts failed pods again until its backoffLimit, of which the folder says nothing."""
    if status.state != "failed" or (status.launcher or {}).get("name") != "kubernetes":
        return None
    return f"Kubernetes may start it again: dcdist status {status.run} --watch would go on watching then"


def watch_run(url: str, as_json: bool, every_seconds: float | None = None) -> None:
    """Watches on this process's standard output: pictures on a terminal, else plain lines, or lines of JSON."""
    watcher = Watcher(url)
    console = Console(highlight=False, soft_wrap=True)
    display: Display
    if as_json:
        display = JsonLines(lambda line: print(line, flush=True))
    elif console.is_terminal and not console.is_dumb_terminal:
        display = Screen(Console(highlight=False), symbols_for(console))
    else:
        display = PlainLines(lambda line: print(line, flush=True), symbols_for(console))
    # Beside the output, which may be read by a program.
    watch(
        watcher, display, every_seconds or watcher.every_seconds, lambda text: print(text, file=sys.stderr, flush=True)
    )


def _read_plan(run: RunDirectory) -> tuple[tuple[str, ...], float | None] | None:
    """The names of the stages and checkpoint.every_seconds; None as long as the config is not there."""
    try:
        config = yaml.safe_load(run.storage.read_bytes(CONFIG))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError):
        return (), None
    if not isinstance(config, dict):
        return (), None
    stages, checkpoint = config.get("stages") or [], config.get("checkpoint")
    names = tuple(str(stage["name"]) for stage in stages if isinstance(stage, dict) and "name" in stage)
    seconds = checkpoint.get("every_seconds") if isinstance(checkpoint, dict) else None
    return names, float(seconds) if isinstance(seconds, int | float) else None
