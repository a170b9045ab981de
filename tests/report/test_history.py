"""Metrics of several attempts as one story, and what is left of it where files are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dcdist.errors import UsageError
from dcdist.metrics.jsonl import read_metrics
from dcdist.report.history import History, read_history
from dcdist.report.series import MOST_POINTS, clustering_curve, epoch_curve, epoch_means, heads, step_curve
from dcdist.run_directory import RunDirectory
from tests.report.made_runs import make_run, record, write, write_attempt

BEGIN = {"event": "stage_begin", "num_epochs": 3, "until_step": 30}


def history_of(folder: Path) -> History:
    return read_history(RunDirectory(str(folder)))


@pytest.fixture
def restarted(tmp_path: Path) -> Path:
    """Killed after step 25, three records after its last checkpoint; gone on from step 10."""
    first = [
        record("event", 0, 0, 1, **BEGIN),
        record("clustering", 0, 0, 2, head=0, objective=0.9),
        record("step", 0, 5, 3, loss=4.0),
        record("step", 0, 10, 4, loss=3.0),
        record("epoch", 0, 10, 5, loss=3.5, heldout_loss=3.0),
        record("clustering", 1, 10, 6, head=0, objective=0.8),
        record("step", 1, 15, 7, loss=2.9),
        record("epoch", 1, 20, 8, loss=2.8, heldout_loss=2.7),
        record("step", 2, 25, 9, loss=2.6),
    ]
    second = [
        record("event", 1, 10, 101, **BEGIN),
        record("clustering", 1, 10, 102, head=0, objective=0.7),
        record("step", 1, 15, 103, loss=2.0),
        record("epoch", 1, 20, 104, loss=1.9, heldout_loss=1.8),
    ]
    write_attempt(tmp_path, 1, 0, None, first)
    write_attempt(tmp_path, 2, 100, (110, 75, "Preempted: SIGTERM asked the run to make room"), second)
    return tmp_path


def test_for_a_step_written_twice_the_later_attempt_holds(restarted: Path) -> None:
    history = history_of(restarted)
    for name, expected in {"loss": [3.5, 1.9], "heldout_loss": [3.0, 1.8]}.items():
        x, y = epoch_curve(history, "clusters", name)
        assert (x.tolist(), y.tolist()) == ([1, 2], expected)
    x, y = step_curve(history, "clusters", "loss")
    assert (x.tolist(), y.tolist()) == ([0.5, 1.0, 1.5, 2.5], [4.0, 3.0, 2.0, 2.6])
    x, y = clustering_curve(history, "clusters", "objective")
    assert (x.tolist(), y.tolist()) == ([0, 1], [0.9, 0.7])
    assert history.remarks == ()


def test_it_is_the_story_that_read_metrics_tells(restarted: Path) -> None:
    assert list(history_of(restarted).records) == read_metrics(RunDirectory(str(restarted)).storage)


def test_damaged_lines_are_left_out_and_counted(restarted: Path) -> None:
    file = restarted / "metrics" / "0002.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = lines[1][:40]  # a clustering of the newer attempt: that of the older one shows again
    no_time, no_number = '{"kind": "step", "stage": "a", "epoch": 1, "step": 2, "time": null}', '{"kind": "epoch"}'
    no_head = json.dumps({**record("clustering", 0, 0, 1), "head": {}})
    no_step = json.dumps(record("epoch", 0, 10**40, 1))
    file.write_text("\n".join([*lines, "[1]", no_time, no_number, no_head, no_step, "\x00", '{"kind": "step", "sta']))
    history = history_of(restarted)
    assert history.remarks == ("metrics/0002.jsonl: 7 lines, the first 2, are damaged and left out.",)
    assert clustering_curve(history, "clusters", "objective")[1].tolist() == [0.9, 0.8]
    assert epoch_curve(history, "clusters", "loss")[1].tolist() == [3.5, 1.9]


def test_half_a_last_line_is_no_damage(restarted: Path) -> None:
    file = restarted / "metrics" / "0002.jsonl"
    file.write_text(file.read_text() + '{"kind": "step", "stage": "clus')
    assert history_of(restarted).remarks == ()


def test_damaged_and_missing_attempts_are_named(restarted: Path) -> None:
    (restarted / "attempts" / "0001.json").write_text('{"attempt": 1, "beg')
    (restarted / "attempts" / "0002.json").unlink()
    history = history_of(restarted)
    assert [attempt.number for attempt in history.attempts] == [1, 2]
    assert len(history.remarks) == 2
    assert "attempts/0001.json is damaged" in history.remarks[0]
    assert "attempts/0002.json is missing" in history.remarks[1]


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=rf"{name} is no run: it has no config.yaml.* Give the folder that run.dir"):
        history_of(tmp_path / name)


def test_a_config_alone_is_a_run(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", "method: deepcluster\n")
    history = history_of(tmp_path)
    assert (history.attempts, history.stages()) == ((), [])


def test_steps_of_a_first_epoch_that_is_not_over(tmp_path: Path) -> None:
    """Nothing but the plan says how long an epoch is."""
    steps = [record("step", 0, step, step, loss=1.0) for step in (2, 4)]
    write_attempt(tmp_path, 1, 0, None, [record("event", 0, 0, 1, **BEGIN), *steps])
    assert step_curve(history_of(tmp_path), "clusters", "loss")[0].tolist() == [0.2, 0.4]
    write_attempt(tmp_path, 1, 0, None, steps)
    assert len(step_curve(history_of(tmp_path), "clusters", "loss")[0]) == 0


def test_many_steps_become_means(tmp_path: Path) -> None:
    steps = [record("step", 0, step, step, loss=float(step)) for step in range(1, 10_001)]
    begin = {**BEGIN, "num_epochs": 1, "until_step": 10_000}
    write_attempt(tmp_path, 1, 0, None, [record("event", 0, 0, 1, **begin), *steps])
    x, y = step_curve(history_of(tmp_path), "clusters", "loss")
    assert len(x) == MOST_POINTS
    assert y[0] == np.mean(range(1, 26))
    np.testing.assert_allclose(x * 10_000, y)


def test_stages_heads_and_loss_terms(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=("first", "second"), num_heads=3)
    history = history_of(folder)
    assert history.stages() == ["first", "second"]
    assert heads(history, "second") == [0, 1, 2]
    assert step_curve(history, "second", "loss")[0].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    terms = epoch_means(history, "second", "losses")
    assert terms.keys() == {"clusters"}
    np.testing.assert_allclose(terms["clusters"][1], [1.925, 1.425, 0.925])


@pytest.mark.parametrize("value", ["0.5", None, True, float("nan"), [1], {"a": 1}, 10**40, -1e300])
def test_what_is_no_number_is_left_out(tmp_path: Path, value: object) -> None:
    lines = [record("epoch", 0, 10, 1, loss=value), record("epoch", 1, 20, 2, loss=2.0)]
    write_attempt(tmp_path, 1, 0, None, lines)
    x, y = epoch_curve(history_of(tmp_path), "clusters", "loss")
    assert (x.tolist(), y.tolist()) == ([2], [2.0])
