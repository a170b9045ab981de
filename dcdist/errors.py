"""Errors that end a run on purpose, and the exit code each of them stands for.

A scheduler decides by the exit code whether to start the same command again, so the codes are a promise.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a process tells whoever started it."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    STOPPED = 3  # stopped on request, or superseded by a newer attempt: do not start again
    RUN_AGAIN = 75  # preempted, or a peer was lost: the same command goes on where this one ended


class DcdistError(Exception):
    """Base of every error whose message is meant for the person who started the run."""

    exit_code = ExitCode.FAILURE


class UsageError(DcdistError, ValueError):
    """A wrong command, config or argument: nothing was started."""

    exit_code = ExitCode.USAGE


class RunError(DcdistError):
    """The run cannot go on: damaged input, a non-finite loss, features without information."""

    exit_code = ExitCode.FAILURE


class Preempted(DcdistError):
    """A signal, to this process or another of the run, asked it to make room; its state is saved."""

    exit_code = ExitCode.RUN_AGAIN

    def __init__(self, signal_name: str) -> None:
        super().__init__(f"{signal_name} asked the run to make room")
        self.signal_name = signal_name


class PeerLost(DcdistError):
    """Another process of the run died or stopped answering."""

    exit_code = ExitCode.RUN_AGAIN


class StopRequested(DcdistError):
    """Somebody asked the run to stop, or a newer attempt has taken it over."""

    exit_code = ExitCode.STOPPED


class Superseded(StopRequested):
    """A newer attempt has taken the run over: this one stops, the run goes on."""
