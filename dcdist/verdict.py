"""Whether a run that has ended early may be started again, as its folder says of its attempts. Needs no torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

from dcdist.errors import DcdistError, ExitCode, PeerLost
from dcdist.job import describe_launcher
from dcdist.run_directory import Attempt, RunDirectory

# So many attempts in a row without a commit, none ended by a signal, and nothing starts the next one by itself.
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3

# Exit codes of a shell for processes that were asked to make room before they could take signals.
_SIGNALS = {128 + number: number.name for number in (signal.SIGTERM, signal.SIGUSR2)}


class Verdict(NamedTuple):
    """What a job came to: RUN_AGAIN where it is to be started again."""

    code: ExitCode
    reason: str


def without_progress(run_directory: RunDirectory, error: DcdistError) -> DcdistError:
    """The error itself, or a failure where the run has ended so too often without getting anywhere.

    Such a failure is recorded as the end of the newest attempt: nobody waits for the next one.
    """
    if error.exit_code is not ExitCode.RUN_AGAIN:
        return error
    try:
        count = run_directory.attempts_without_progress()
        if count < MAX_ATTEMPTS_WITHOUT_PROGRESS:
            return error
        failure = DcdistError(f"{count} attempts in a row ended without a new checkpoint, the last one so: {error}")
        Attempt(run_directory, run_directory.attempt_numbers()[-1]).give_up(str(failure))
    except OSError:
        return error
    return failure


def judge_job(run_directory: RunDirectory, exit_code: int, environment: Mapping[str, str] = os.environ) -> Verdict:
    """What a job's newest start came to, and why; for its launcher, after all processes have ended.

    The exit code of one process does not say it: those that lost a peer ask to be run again, whatever the peer ended
    by, and whom SIGKILL ended says nothing. Such a start is noted here, so that it counts.

    Args:
        run_directory: of the run.
        exit_code: what the processes ended with, as a shell has it; the highest where they differ.
        environment: the job's.

    Raises:
        RunError: the file of an attempt is damaged.
    """
    try:
        attempt = _attempt_of(describe_launcher(environment), run_directory)
        nobody = f"its processes ended with exit code {exit_code}, and none was left to say why"
        attempt.record_end(ExitCode.RUN_AGAIN, nobody, _SIGNALS.get(exit_code))
        newer = attempt.superseded_by()
        ended = run_directory.read_attempt(attempt.number)["ended"]
    except OSError as error:  # the processes of the next start say so themselves, where it lasts
        return Verdict(ExitCode.RUN_AGAIN, f"how the run stands is not to be read: {error}")
    if newer is not None:
        return Verdict(ExitCode.STOPPED, f"attempt {newer} has taken the run over")
    if ended["exit_code"] != ExitCode.RUN_AGAIN:
        return Verdict(ExitCode(ended["exit_code"]), f"attempt {attempt.number} ended so: {ended['reason']}")
    ending = without_progress(run_directory, PeerLost(ended["reason"]))
    return Verdict(ending.exit_code, str(ending))


def _attempt_of(launcher: Mapping[str, Any], run_directory: RunDirectory) -> Attempt:
    """That of a job's newest start, begun here where no process came so far."""
    for number in reversed(run_directory.attempt_numbers()):
        found = run_directory.read_attempt(number).get("launcher") or {}
        if all(found.get(key) == launcher.get(key) for key in ("name", "job", "restart_count")):
            return Attempt(run_directory, number)
    return run_directory.begin_attempt({"launcher": launcher})
