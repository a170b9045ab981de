"""What an attempt records of itself, and that it closes what it has opened, however it ends."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcdist import training
from dcdist.config.schema import ExperimentConfig
from dcdist.distributed.collectives import Collectives
from dcdist.engine.preemption import SignalFlag
from dcdist.errors import PeerLost, RunError
from dcdist.metrics.recorder import Recorder
from dcdist.run_directory import Attempt, RunDirectory
from dcdist.training import Training
from tests.engine.test_journal import Kept
from tests.methods.small_methods import SMALL


class Sink(Kept):
    """It tells how often it was closed."""

    num_closed = 0

    def close(self) -> None:
        self.num_closed += 1

    def of(self, event: str) -> dict[str, Any]:
        (found,) = (dict(record) for record in self.records if record.get("event") == event)
        return found


class Loader:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    """Where the records of `attempt` go, whose stages and scores do nothing."""
    sink = Sink()
    monkeypatch.setattr(training, "build_recorder", lambda *_: Recorder([sink]))
    monkeypatch.setattr(training, "BatchLoader", Loader)
    monkeypatch.setattr(training, "run_stages", lambda *_: None)
    monkeypatch.setattr(Training, "_score", lambda *_: None)
    return sink


def attempt(folder: Path) -> Training:
    config = ExperimentConfig.model_validate({**SMALL, "run": {"dir": str(folder)}})
    run_directory = RunDirectory(str(folder))
    begun: Any = SimpleNamespace(
        config=config,
        run_directory=run_directory,
        attempt=Attempt(run_directory, run_directory.begin_attempt({}).number),
        source=None,
        heldout=None,
        fingerprint="f",
        backbone=None,
        collectives=Collectives(),
        devices=(SimpleNamespace(type="cpu"),),
        signals=SignalFlag(),
    )
    result = Training(begun)
    result._begin = result._checkpointer.begin  # type: ignore[method-assign]
    return result


def test_an_attempt_that_is_done(sink: Sink, tmp_path: Path) -> None:
    with contextlib.closing(attempt(tmp_path)) as begun:
        begun.run()
    assert sink.num_closed == 1
    assert {name: sink.of("end")[name] for name in ("exit_code", "finished", "goes_on")} == {
        "exit_code": 0,
        "finished": True,
        "goes_on": False,
    }


@pytest.mark.parametrize(
    ("error", "exit_code", "goes_on"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [10.0.0.2]:4711"), 75, True),
        (PeerLost("another process died"), 75, True),
        (RunError("the loss is not finite"), 1, False),
        (RuntimeError("shapes differ"), 1, False),
    ],
)
def test_an_attempt_that_ends_by_an_error(
    error: Exception, exit_code: int, goes_on: bool, sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "run_stages", raising(error))
    with pytest.raises(type(error)), contextlib.closing(attempt(tmp_path)) as begun:
        begun.run()
    end = sink.of("end")
    assert (end["exit_code"], end["finished"], end["goes_on"]) == (exit_code, False, goes_on)
    assert sink.num_closed == 1


@pytest.mark.parametrize("name", ["BatchLoader", "Boundary", "Machines"])
def test_what_cannot_be_built_leaves_nothing_open(
    name: str, sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, name, raising(RunError("no")))
    with pytest.raises(RunError), contextlib.closing(attempt(tmp_path)) as begun:
        begun.run()
    assert sink.of("end")["exit_code"] == 1
    assert sink.num_closed == 1


def test_a_loader_that_does_not_close_keeps_nothing_else_open(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "close", raising(OSError("no")))
    with pytest.raises(OSError, match="no"), contextlib.closing(attempt(tmp_path)) as begun:
        begun.run()
    assert sink.num_closed == 1


def test_a_history_that_cannot_be_read_ends_nothing(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(RunDirectory, "history", raising(OSError("the storage fails for a moment")))
    with contextlib.closing(attempt(tmp_path)) as begun:
        begun.run()
    start = sink.of("start")
    assert (start["attempt"], start["repeated_steps_in_all"], start["preemptions"]) == (1, 0, {})
    assert "the storage fails for a moment" in caplog.text


def test_a_moment_that_is_saved_already_is_no_checkpoint(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = attempt(tmp_path)

    def save(*_: Any) -> None:
        run._state.progress.step = 4
        for _ in range(3):  # as at the batches of held-out images
            run._save({}, "train")
        run._save({}, "final")

    monkeypatch.setattr(training, "run_stages", save)
    run.run()
    names = [record["name"] for record in sink.records if record.get("event") == "checkpoint"]
    assert names == ["step-00000004-train.0001", "step-00000004-final.0001"]
