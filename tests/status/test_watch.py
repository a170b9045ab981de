"""Watching a run that goes on meanwhile."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dcdist.errors import UsageError
from dcdist.status.displays import JsonLines, PlainLines, Screen, symbols_for
from dcdist.status.sparkline import ASCII, BLOCKS
from dcdist.status.watch import EVERY_SECONDS, EVERY_SECONDS_BEHIND_URL, Watcher, watch
from dcdist.storage import LocalStorage
from tests.status.runs import T0, HandWrittenRun, clustering, event, stage_begin, start, step


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HandWrittenRun:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    written = HandWrittenRun(tmp_path / "run")
    attempt = written.begin()
    written.write(attempt, start(1, 0), stage_begin(0, 40), step(10, 4.0, T0 + 20))
    written.beat(attempt, T0 + 20, step=10, until_step=40, num_epochs=4, loss=4.0)
    return written


class Script:
    """A clock; each wait is the next of the steps, by which the run goes on."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.now = T0 + 20
        self._steps = iter(steps)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        next(self._steps)()


def plain(run: HandWrittenRun, *steps: Callable[[], None]) -> list[str]:
    """The lines of watching it, and among them, after "SAID ", what is said beside."""
    lines: list[str] = []
    script, display = Script(*steps), PlainLines(lines.append, BLOCKS)
    display.wait = script.wait  # type: ignore[method-assign]
    watcher = Watcher(str(run.folder), lambda: script.now)
    watch(watcher, display, 10.0, lambda text: lines.append(f"SAID {text}"))
    return lines


def test_lines_for_a_pipe(run: HandWrittenRun) -> None:
    def clusters() -> None:
        run.write(1, clustering(20, 1, 0.9, refilled=2, time=T0 + 29))
        run.beat(1, T0 + 30, step=20, until_step=40, num_epochs=4, epoch=1, loss=3.0)

    def nothing() -> None:
        run.beat(1, T0 + 40, step=22, until_step=40, num_epochs=4, epoch=1, loss=2.5)

    def done() -> None:
        run.write(1, event("checkpoint", 40, T0 + 49, 4, name="step-00000040-final.0001"))
        run.beat(1, T0 + 50, step=40, until_step=40, num_epochs=4, epoch=4, loss=2.0)
        run.end(1, 0, "done")

    lines = plain(run, clusters, nothing, done)
    first = lines.index("", lines.index("08:00:00  stage main begins"))
    assert lines[0].startswith(f"{run.folder}: running ")
    assert lines[first + 1 : first + 6] == [
        "08:00:29  epoch 2: 100 clusters, 2 refilled",
        "08:00:30  running, main, epoch 2 of 4, step 20 of 40, train, loss 3.0000, 30 s left",
        "08:00:49  checkpoint step-00000040-final.0001",
        "08:00:50  done, main, epoch 4 of 4, step 40 of 40, loss 2.0000",
        "",
    ]
    assert lines[first + 6].startswith(f"{run.folder}: done ")


def test_once_a_minute_the_position(run: HandWrittenRun) -> None:
    def later() -> None:
        run.beat(1, T0 + 79, step=11, until_step=40, num_epochs=4, loss=4.0)

    def end() -> None:
        run.end(1, 3, "StopRequested: asked to")

    lines = plain(run, *[later] * 6, end)
    assert [line for line in lines if "running, main" in line] == [
        "08:01:20  running, main, epoch 1 of 4, step 11 of 40, train, loss 4.0000, 3:28 left"  # 79 s / 11 * 29
    ]
    assert "08:01:30  stopped, main, epoch 1 of 4, step 11 of 40, loss 4.0000" in lines


def test_a_run_that_has_ended_is_one_picture(run: HandWrittenRun) -> None:
    run.end(1, 1, "RunError: no\nspace")
    lines = plain(run)
    assert lines[0].startswith(f"{run.folder}: failed ")
    assert lines[1] == "RunError: no space"
    assert sum(line.startswith(str(run.folder)) for line in lines) == 1


def test_a_preempted_run_is_waited_for(run: HandWrittenRun) -> None:
    def preempted() -> None:
        run.end(1, 75, "Preempted: SIGTERM", "SIGTERM")

    def again() -> None:
        run.begin()
        run.write(2, start(2, 10, T0 + 40, "step-00000010-train.0001"), stage_begin(10, 40, T0 + 40))
        run.beat(2, T0 + 40, step=10, until_step=40, num_epochs=4)

    def done() -> None:
        run.end(2, 0, "done")

    lines = plain(run, preempted, again, done)
    assert "08:00:30  preempted, main, epoch 1 of 4, step 10 of 40, loss 4.0000" in lines
    assert "08:00:40  attempt 2 goes on from step-00000010-train.0001" in lines
    assert lines[-1] != ""
    assert "attempt 2, 1 restart (SIGTERM 1), 0 steps repeated; 2 processes, local" in lines


@pytest.mark.parametrize(
    ("launcher", "exit_code", "is_said"), [("kubernetes", 1, True), ("kubernetes", 3, False), ("local", 1, False)]
)
def test_who_may_start_a_failed_run_again_is_said(
    run: HandWrittenRun, launcher: str, exit_code: int, is_said: bool
) -> None:
    attempt = run.begin(launcher={"name": launcher})
    run.end(attempt, exit_code, "why")
    last = f"SAID Kubernetes may start it again: dcdist status {run.folder} --watch would go on watching then"
    assert (plain(run)[-1] == last) == is_said


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = HandWrittenRun(tmp_path / "later")
    list_names = LocalStorage.list

    def nothing() -> None:
        assert not run.folder.exists()

    def submitted() -> None:
        (run.folder / "slurm").mkdir(parents=True)

    def fails() -> None:
        monkeypatch.setattr(LocalStorage, "list", lambda *_: (_ for _ in ()).throw(OSError("Stale file handle")))

    def hidden_by_a_cache() -> None:
        monkeypatch.setattr(LocalStorage, "list", list_names)
        (run.folder / "metrics").mkdir()

    def begun() -> None:
        run.end(run.begin(), 0, "done")

    lines = plain(run, nothing, submitted, fails, hidden_by_a_cache, begun)
    assert lines[:3] == [
        f"SAID {run.folder} has no attempts yet: waiting for the run to begin (Ctrl-C leaves)",
        f"SAID {run.folder} cannot be read for now, tried again: Stale file handle",
        f"SAID {run.folder} has no attempts yet: waiting for the run to begin (Ctrl-C leaves)",
    ]
    assert lines[3].startswith(f"{run.folder}: done ")


def test_a_folder_of_something_else_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photographs").mkdir()
    with pytest.raises(UsageError, match=r"has no attempts, but photographs: is this a run's folder"):
        Watcher(str(tmp_path)).missing()
    monkeypatch.setattr(LocalStorage, "list", lambda *_: (_ for _ in ()).throw(OSError("Stale file handle")))
    with pytest.raises(OSError, match="Stale"):
        Watcher(str(tmp_path)).missing()


def test_waiting_is_said_beside_the_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dcdist", "status", str(tmp_path / "later"), "--watch", "--every", "0.1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().endswith("waiting for the run to begin (Ctrl-C leaves)\n")
        run = HandWrittenRun(tmp_path / "later")
        run.beat(run.begin(), time.time(), step=10, loss=math.nan)
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert (json.loads(first)["state"], json.loads(first)["loss"]) == ("running", None)


def test_json_lines(run: HandWrittenRun) -> None:
    def clusters() -> None:
        run.write(1, clustering(20, 1, 0.9, 0.1, 0.75, refilled=2, time=T0 + 29))

    def done() -> None:
        run.end(1, 0, "done")

    lines: list[str] = []
    script, display = Script(clusters, done), JsonLines(lines.append)
    display.wait = script.wait  # type: ignore[method-assign]
    watch(Watcher(str(run.folder), lambda: script.now), display, 10.0, print)
    first, second, third = map(json.loads, lines)
    assert (first["time"], first["state"], first["step"], first["clustering"]) == (T0 + 20, "running", 10, None)
    assert [entry["text"] for entry in first["events"]] == ["attempt 1 begins", "stage main begins"]
    assert second["clustering"] == {
        "epoch": 1,
        "num_clusters": 100,
        "num_refilled": 2,
        "num_heads": 1,
        "size_entropy_ratio": 0.9,
        "size_max_ratio": 0.1,
        "nmi_previous": 0.75,
        "changed_ratio": 0.25,
    }
    text = "epoch 2: 100 clusters, 2 refilled, 25% changed"
    assert second["events"] == [{"time": T0 + 29, "text": text, "tone": "warning"}]
    assert (third["state"], third["events"], third["remark"]) == ("done", [], None)


def test_storage_that_fails_for_a_while(run: HandWrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(str(run.folder), lambda: T0 + 21)
    assert watcher.look().remark is None
    with monkeypatch.context() as broken:
        broken.setattr(
            "dcdist.storage.LocalStorage.list", lambda *_: (_ for _ in ()).throw(OSError("Stale file handle"))
        )
        picture = watcher.look()
        assert picture.remark == "cannot be read for now, tried again: Stale file handle"
        assert picture.status.step == 10
        with pytest.raises(OSError, match="Stale"):
            Watcher(str(run.folder)).look()
    assert watcher.look().remark is None


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no attempts"):
        Watcher(str(tmp_path)).look()


def test_what_the_config_says_of_stages_and_checkpoints(run: HandWrittenRun) -> None:
    watcher = Watcher(str(run.folder), lambda: T0 + 21)
    assert (watcher.look().stages, watcher.look().checkpoint_seconds) == ((), None)
    (run.folder / "config.yaml").write_text("stages: [{name: main}, {name: scan}]\ncheckpoint: {every_seconds: 600}\n")
    assert (watcher.look().stages, watcher.look().checkpoint_seconds) == (("main", "scan"), 600.0)
    (run.folder / "config.yaml").write_text("stages: [")
    assert Watcher(str(run.folder), lambda: T0 + 21).look().stages == ()


def test_servers_are_asked_less_often(run: HandWrittenRun) -> None:
    assert Watcher(str(run.folder)).every_seconds == EVERY_SECONDS == 2.0
    assert Watcher("memory://run").every_seconds == EVERY_SECONDS_BEHIND_URL == 30.0


def test_the_first_line_of_json_has_the_newest_events(run: HandWrittenRun) -> None:
    run.write(1, *(event("checkpoint", number, name=str(number)) for number in range(300)))
    run.end(1, 0, "done")
    lines: list[str] = []
    watch(Watcher(str(run.folder), lambda: T0 + 20), JsonLines(lines.append), 10.0, print)
    assert [entry["text"] for entry in json.loads(lines[0])["events"]] == [f"checkpoint {k}" for k in range(290, 300)]


def test_a_run_behind_a_url(run: HandWrittenRun) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(run.folder), "/watched", recursive=True)
    picture = Watcher("memory://watched", lambda: T0 + 21).look()
    assert (picture.status.state, picture.status.step, picture.status.remaining_seconds) == ("running", 10, 60.0)
    assert picture.story.stages["main"].loss_values() == [4.0]


@pytest.mark.parametrize(
    ("encoding", "of_locale", "expected"),
    [
        ("utf-8", "UTF-8", BLOCKS),
        ("utf-8", "ANSI_X3.4-1968", ASCII),
        ("ascii", "UTF-8", ASCII),
        ("latin-1", "x", ASCII),
    ],
)
def test_symbols(monkeypatch: pytest.MonkeyPatch, encoding: str, of_locale: str, expected: object) -> None:
    monkeypatch.setattr("locale.getencoding", lambda: of_locale)
    assert symbols_for(Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding))) is expected


def test_the_last_picture_stays_on_the_terminal(run: HandWrittenRun) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60, height=24, color_system=None, legacy_windows=False)
    display, script = Screen(console, BLOCKS), Script(lambda: run.end(1, 0, "done"))
    display.wait = script.wait  # type: ignore[method-assign]
    watch(Watcher(str(run.folder), lambda: script.now), display, 10.0, print)
    begin, _, rest = output.getvalue().partition("\x1b[?1049h")
    shown, _, left = rest.partition("\x1b[?1049l")
    assert begin == ""
    assert ": running" in shown
    assert left.splitlines()[0].endswith(": done  08:00:30")
    assert "\x1b[?25h" in shown  # the cursor is back


def test_ctrl_c_leaves_the_run_alone(run: HandWrittenRun) -> None:
    run.beat(1, time.time(), step=10, until_step=40)
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="60", LINES="24")
        os.execv(sys.executable, [sys.executable, "-m", "dcdist", "status", str(run.folder), "--watch"])
    shown, deadline = b"", time.monotonic() + 60
    while b"running" not in shown:
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    after = b""
    while True:
        try:
            after += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = after.decode()
    assert "Traceback" not in text
    assert "Aborted" not in text
    assert "\x1b[?1049l" in text
    assert "\x1b[?25h" in text
    assert "running" in text.partition("\x1b[?1049l")[2]


def test_as_a_command_in_a_pipe(run: HandWrittenRun) -> None:
    run.beat(1, time.time(), step=10, until_step=40)
    command = [sys.executable, "-m", "dcdist", "status", str(run.folder), "--watch", "--every", "0.1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["state"] == "running"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    run.end(1, 1, "RunError: why")
    done = subprocess.run([*command[:-3]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith(f"{run.folder}: failed ")
    assert "\x1b" not in done.stdout
