"""What a job came to, as its launcher finds out from the run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdist.commits import CheckpointName
from dcdist.errors import DcdistError, ExitCode, PeerLost, Preempted, RunError
from dcdist.job import describe_launcher
from dcdist.run_directory import RunDirectory
from dcdist.status import read_status
from dcdist.verdict import judge_job, without_progress


def job(restarts: int = 0) -> dict[str, str]:
    return {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": str(restarts)}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run"))


def begin(run: RunDirectory, restarts: int = 0) -> None:
    run.begin_attempt({"launcher": describe_launcher(job(restarts))}).record_beginning(None)


def end(run: RunDirectory, exit_code: int, signal: str | None = None, restarts: int = 0) -> None:
    attempt = run.begin_attempt({"launcher": describe_launcher(job(restarts))})
    attempt.record_beginning(None)
    attempt.record_end(exit_code, "a reason", signal)


@pytest.mark.parametrize("exit_code", [0, 1, 2, 3])
def test_what_the_run_ended_with_counts_for_more_than_a_peer_that_lost_it(run: RunDirectory, exit_code: int) -> None:
    end(run, exit_code)
    assert judge_job(run, 75, job()) == (exit_code, "attempt 1 ended so: a reason")


def test_the_third_start_in_a_row_without_progress_is_the_last(run: RunDirectory) -> None:
    for restarts, expected in enumerate((75, 75, 1)):
        end(run, 75, restarts=restarts)
        assert judge_job(run, 137, job(restarts)).code == expected
    reason = "3 attempts in a row ended without a new checkpoint, the last one so: a reason"
    assert judge_job(run, 137, job(2)).reason == f"attempt 3 ended so: {reason}"
    status = read_status(str(run))
    assert (status.state, status.reason) == ("failed", reason), "nobody waits for it to be started again"


def test_preempted_it_is_started_again_however_often(run: RunDirectory) -> None:
    for restarts in range(5):
        end(run, 75, "SIGTERM", restarts)
        assert judge_job(run, 75, job(restarts)) == (75, "a reason")


def test_an_end_that_nobody_was_left_to_record_is_recorded(run: RunDirectory) -> None:
    for restarts, expected in enumerate((75, 75, 1)):
        begin(run, restarts)
        assert judge_job(run, 137, job(restarts)).code == expected
    ended = run.read_attempt(1)["ended"]
    assert (ended["exit_code"], ended["signal"]) == (75, None)
    assert ended["reason"] == "its processes ended with exit code 137, and none was left to say why"


@pytest.mark.parametrize(("exit_code", "signal"), [(140, "SIGUSR2"), (143, "SIGTERM")])
def test_killed_by_a_request_to_make_room_does_not_count(run: RunDirectory, exit_code: int, signal: str) -> None:
    for restarts in range(4):
        begin(run, restarts)
        assert judge_job(run, exit_code, job(restarts)).code is ExitCode.RUN_AGAIN
    assert run.read_attempt(4)["ended"]["signal"] == signal


def test_starts_that_left_no_attempt_count(run: RunDirectory) -> None:
    for restarts, expected in enumerate((75, 75, 1)):
        assert judge_job(run, 137, job(restarts)).code == expected
    assert run.attempt_numbers() == [1, 2, 3]
    assert run.read_attempt(3)["launcher"]["restart_count"] == 2
    assert read_status(str(run)).attempt == 3


def test_progress_breaks_the_row(run: RunDirectory) -> None:
    for restarts in range(4):
        begin(run, restarts)
        name = CheckpointName(restarts + 1, "train", restarts + 1)
        run.storage.write_bytes(f"{name.folder}/COMMIT.json", b"{}")
        assert judge_job(run, 137, job(restarts)).code is ExitCode.RUN_AGAIN


def test_a_run_that_another_job_has_taken_over_is_left_to_it(run: RunDirectory) -> None:
    begin(run)
    run.begin_attempt({"launcher": describe_launcher(job() | {"SLURM_JOB_ID": "18"})})
    assert judge_job(run, 137, job()) == (3, "attempt 2 has taken the run over")
    assert "ended" not in run.read_attempt(2)


def test_a_folder_that_fails_for_a_moment_ends_nothing(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: RunDirectory) -> list[int]:
        raise OSError("no answer")

    monkeypatch.setattr(RunDirectory, "attempt_numbers", fail)
    assert judge_job(run, 75, job()) == (75, "how the run stands is not to be read: no answer")


def test_only_what_would_be_started_again_becomes_a_failure(run: RunDirectory) -> None:
    for _ in range(3):
        end(run, 75)
    error = without_progress(run, PeerLost("gone"))
    assert type(error) is DcdistError
    assert error.exit_code is ExitCode.FAILURE
    assert str(error) == "3 attempts in a row ended without a new checkpoint, the last one so: gone"
    failure = RunError("damaged")
    assert without_progress(run, failure) is failure
    end(run, 75, "SIGTERM")
    preempted = Preempted("SIGTERM")
    assert without_progress(run, preempted) is preempted
