"""Attempts: each number once, the newest in charge, lines that leave out what stragglers commit."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcdist.commits import CheckpointName, Commit
from dcdist.errors import ExitCode, RunError, UsageError
from dcdist.filesystems import StorageError
from dcdist.run_directory import Attempt, RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run"))


def commit(run: RunDirectory, text: str) -> CheckpointName:
    name = CheckpointName.parse(text)
    assert name is not None
    content = Commit(name, {"stage": "main", "epoch": 3}, {}, 1, "digest", "2026-01-01T00:00:00+00:00")
    run.storage.write_bytes(f"{name.folder}/COMMIT.json", content.to_bytes())
    return name


def take_numbers(url: str, count: int) -> list[int]:
    run = RunDirectory(url)
    return [run.begin_attempt({"process": os.getpid()}).number for _ in range(count)]


def test_names_of_files(run: RunDirectory) -> None:
    assert run.attempt_file(3) == "attempts/0003.json"
    assert run.metrics_file(3) == "metrics/0003.jsonl"
    assert run.log_file(12, 4) == "logs/0012-rank-4.log"
    assert run.assignments_file("main", 7) == "assignments/main-7.parquet"
    assert run.assignments_file("main", "final") == "assignments/main-final.parquet"
    assert run.evaluation_file("knn") == "evaluations/knn-0001.json"
    run.storage.write_bytes("evaluations/knn-0001.json", b"{}")
    run.storage.write_bytes("evaluations/linear-0007.json", b"{}")
    assert run.evaluation_file("knn") == "evaluations/knn-0002.json"


def test_attempt_file(run: RunDirectory, tmp_path: Path) -> None:
    attempt = run.begin_attempt({"num_processes": 2})
    content = json.loads((tmp_path / "run/attempts/0001.json").read_text())
    assert (content["attempt"], content["num_processes"], content["pid"]) == (1, 2, os.getpid())
    assert content["began"].endswith("+00:00")
    assert not attempt.has_begun()
    attempt.record_beginning(None)
    assert attempt.has_begun()
    attempt.record_end(ExitCode.RUN_AGAIN, "SIGTERM", "SIGTERM")
    attempt.record_end(ExitCode.FAILURE, "the launcher knows less")
    content = json.loads((tmp_path / "run/attempts/0001.json").read_text())
    assert content["began_from"] is None
    assert content["num_processes"] == 2
    ended = content["ended"]
    assert ended.pop("when").endswith("+00:00")
    assert ended == {"exit_code": 75, "reason": "SIGTERM", "signal": "SIGTERM", "last_commit": None}


def test_each_number_is_taken_once(run: RunDirectory) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        taken = pool.starmap(take_numbers, [(str(run), 20)] * 4, chunksize=1)
    assert sorted(number for numbers in taken for number in numbers) == list(range(1, 81))
    assert all(numbers == sorted(numbers) for numbers in taken)
    assert run.attempt_numbers() == list(range(1, 81))


def test_each_number_is_taken_once_on_s3(s3_server: str) -> None:
    assert s3_server
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        taken = pool.starmap(take_numbers, [("s3://bucket/run", 4)] * 2, chunksize=1)
    assert sorted(number for numbers in taken for number in numbers) == list(range(1, 9))


def test_the_newest_is_in_charge(run: RunDirectory) -> None:
    first = run.begin_attempt({})
    assert first.superseded_by() is None
    second = run.begin_attempt({})
    third = run.begin_attempt({})
    assert (first.superseded_by(), second.superseded_by(), third.superseded_by()) == (3, 3, None)


def test_a_stop_request_names_its_attempt(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match="no attempt 0 to stop, it has none"):
        run.request_stop()
    first = run.begin_attempt({})
    assert not first.stop_requested()
    assert run.request_stop() == 1
    assert first.stop_requested()
    second = run.begin_attempt({})
    assert not second.stop_requested()
    assert run.attempt_numbers() == [1, 2]
    with pytest.raises(UsageError, match=r"no attempt 9 to stop, it has \[1, 2\]"):
        run.request_stop(9)


def test_line_follows_what_attempts_began_from(run: RunDirectory) -> None:
    assert run.line() == []
    one = run.begin_attempt({})
    one.record_beginning(None)
    first = [commit(run, f"step-0000{step}-train.0001") for step in ("0010", "0020")]
    two = run.begin_attempt({})
    assert run.line() == first  # two has recorded nothing yet
    two.record_beginning(first[1])
    straggler = commit(run, "step-00000030-train.0001")
    assert run.line() == first
    second = commit(run, "step-00000025-clustered.0002")
    assert run.line() == [*first, second]
    three = run.begin_attempt({})
    three.record_beginning(first[0])  # what came after it was damaged
    assert run.line() == first[:1]
    assert run.line(2) == [*first, second]
    third = commit(run, "step-00000020-train.0003")
    run.begin_attempt({}).record_beginning(third)
    late = commit(run, "step-00000040-final.0003")
    newest = commit(run, "step-00000021-train.0004")
    (Path(str(run)) / "checkpoints/step-00000099-train.0004").mkdir()
    assert run.line() == [first[0], third, newest]
    states = {str(info.name): info.state for info in run.inventory()}
    assert states == {
        str(first[0]): "ok",
        str(first[1]): "superseded",
        str(third): "ok",
        str(newest): "ok",
        str(second): "superseded",
        str(straggler): "superseded",
        str(late): "superseded",
        "step-00000099-train.0004": "uncommitted",
    }
    assert (
        run.inventory()[0].line()
        == "step-00000010-train.0001  stage main  epoch 3  0.0 MB  2026-01-01T00:00:00+00:00  ok"
    )


def test_an_attempt_that_died_before_its_record_is_passed_by(run: RunDirectory) -> None:
    run.begin_attempt({}).record_beginning(None)
    first = commit(run, "step-00000010-train.0001")
    run.begin_attempt({})
    run.begin_attempt({}).record_beginning(first)
    second = commit(run, "step-00000020-train.0003")
    assert run.line() == [first, second]


def test_a_start_from_nothing_begins_a_new_line(run: RunDirectory) -> None:
    run.begin_attempt({}).record_beginning(None)
    run.begin_attempt({}).record_beginning(None)
    commit(run, "step-00000010-train.0001")  # after 2 began: a straggler's
    assert run.line() == []


def test_a_damaged_attempt_file_is_named(run: RunDirectory) -> None:
    attempt = run.begin_attempt({})
    run.storage.write_bytes(run.attempt_file(1), b'{"attempt": 1, ')
    with pytest.raises(RunError, match=r"attempts/0001.json is damaged .*: restore it, or remove it"):
        run.line()
    with pytest.raises(RunError, match="damaged"):
        attempt.record_beginning(None)


def test_keys_are_written_once(run: RunDirectory) -> None:
    run.write_keys(b"first")
    run.write_keys(b"second")
    assert run.storage.read_bytes("keys.parquet") == b"first"


def end(run: RunDirectory, exit_code: int, signal: str | None = None, commits: str | None = None) -> Attempt:
    attempt = run.begin_attempt({})
    attempt.record_beginning(None)
    if commits is not None:
        commit(run, f"{commits}.{attempt.number:04d}")
    attempt.record_end(exit_code, "a reason", signal)
    return attempt


def test_attempts_without_progress_are_counted_from_the_newest(run: RunDirectory) -> None:
    assert run.attempts_without_progress() == 0
    end(run, ExitCode.FAILURE)
    progressed = end(run, ExitCode.FAILURE, commits="step-00000001-train")
    assert run.read_attempt(progressed.number)["ended"]["last_commit"] == "step-00000001-train.0002"
    assert run.attempts_without_progress() == 0
    end(run, ExitCode.FAILURE)
    end(run, ExitCode.RUN_AGAIN)
    assert run.attempts_without_progress() == 2
    current = run.begin_attempt({})
    assert run.attempts_without_progress(before=current.number) == 2
    assert run.attempts_without_progress() == 0  # still running, or killed without a word
    current.record_end(ExitCode.FAILURE, "noted by its launcher")
    assert run.attempts_without_progress() == 3


@pytest.mark.parametrize(
    ("exit_code", "signal"),
    [(ExitCode.RUN_AGAIN, "SIGTERM"), (ExitCode.FAILURE, "SIGKILL"), (0, None), (2, None), (3, None)],
)
def test_ends_that_break_the_row(run: RunDirectory, exit_code: int, signal: str | None) -> None:
    end(run, ExitCode.FAILURE)
    end(run, exit_code, signal)
    assert run.attempts_without_progress() == 0
    end(run, ExitCode.FAILURE)
    assert run.attempts_without_progress() == 1


@pytest.mark.parametrize(
    "content",
    [
        b'{"attempt": 1, ',
        b'{"ended": "yesterday"}',
        b'{"ended": {"when": "yesterday"}}',
        b'{"ended": {"exit_code": 42, "signal": null}}',
        b'{"repeated_steps": null}',
    ],
)
def test_a_damaged_attempt_is_left_out_of_the_history(
    run: RunDirectory, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    end(run, ExitCode.FAILURE)
    run.begin_attempt({}).record_beginning(None, repeated_steps=5)
    run.storage.write_bytes(run.attempt_file(1), content)
    assert run.history(before=3) == run.history(before=3) == ({"killed": 1}, 5)
    (message,) = caplog.messages
    assert message.startswith(f"{run}/attempts/0001.json is damaged, its restart is not counted: ")


def test_what_others_wrote_without_a_signal_counts(run: RunDirectory) -> None:
    end(run, ExitCode.FAILURE)
    run.storage.write_bytes(run.attempt_file(1), b'{"ended": {"exit_code": 1}}')
    assert run.history(before=2) == ({"failed": 1}, 0)


def test_a_storage_that_fails_is_no_damage(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    end(run, ExitCode.FAILURE)
    monkeypatch.setattr(run.storage, "read_bytes", lambda _: (_ for _ in ()).throw(StorageError("no answer")))
    with pytest.raises(StorageError):
        run.history(before=2)


def test_needs_no_torch() -> None:
    program = "import sys, dcdist.run_directory; assert not {'torch', 's3fs', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
