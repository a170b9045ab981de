"""One process fails by itself: the run ends as that one did. What fails before an attempt has begun counts too."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NoReturn

from tests.cluster.runs import attempts
from tests.runs.processes import run, run_to_message, start_run

# Called in ranks, where everything is loaded already.


def die_with_the_images() -> None:
    """Rank 1 is killed while it opens them, as by a cache that takes too much memory."""
    from dcdist import session

    if os.environ["RANK"] == "1":
        session.open_training_images = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def lack_the_images() -> None:
    from dcdist import session
    from dcdist.errors import UsageError

    def refuse(*_: object) -> NoReturn:
        raise UsageError("data.root=/images is not there")

    if os.environ["RANK"] == "1":
        session.open_training_images = refuse  # type: ignore[assignment]


def have_a_full_disk() -> None:
    from dcdist import session

    def fail(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    if os.environ["RANK"] == "1":
        session.open_training_images = fail  # type: ignore[assignment]


def fail_in_the_fifth_step() -> None:
    from dcdist.engine.training_step import TrainingStep

    train, count = TrainingStep.__call__, iter(range(100))

    def fail(*arguments: Any, **more: Any) -> Any:
        if next(count) == 4:
            raise OSError(5, "Input/output error")
        return train(*arguments, **more)

    if os.environ["RANK"] == "1":
        TrainingStep.__call__ = fail  # type: ignore[method-assign]


def test_a_process_that_dies_before_the_attempt_has_begun(config: Path) -> None:
    for expected in (75, 75, 1):
        running = start_run(config, num_processes=2, prepare=die_with_the_images)
        assert running.wait() == [expected, -signal.SIGKILL], running.errors()
    assert "3 attempts in a row ended without a new checkpoint" in running.errors()
    ends = [attempt["ended"] for attempt in attempts(config.parent / "run")]
    assert [end["exit_code"] for end in ends] == [75, 75, 1]
    assert ends[0]["reason"].startswith("PeerLost: another process of the run died")
    assert run(config) == [0]


def test_data_that_one_machine_lacks_end_the_run_on_all(config: Path) -> None:
    code, message = run_to_message(config, num_processes=2, prepare=lack_the_images)
    assert code == 2
    assert "rank 1 on " in message
    assert "data.root=/images is not there" in message
    assert not (config.parent / "run" / "attempts").exists(), "nothing was started"


def test_a_disk_that_is_full_on_one_machine_ends_the_run_on_all(config: Path) -> None:
    code, message = run_to_message(config, num_processes=2, prepare=have_a_full_disk)
    assert code == 1
    assert "No space left on device" in message
    (attempt,) = attempts(config.parent / "run")
    assert attempt["ended"]["exit_code"] == 1
    assert "No space left on device" in attempt["ended"]["reason"]
    assert run(config, num_processes=2) == [0, 0]


def test_a_process_that_fails_alone_ends_the_run(config: Path) -> None:
    code, message = run_to_message(config, num_processes=2, prepare=fail_in_the_fifth_step)
    assert code == 1
    assert "rank 1 on " in message
    (attempt,) = attempts(config.parent / "run")
    assert attempt["ended"]["exit_code"] == 1
    assert "Input/output error" in attempt["ended"]["reason"]
    assert run(config, num_processes=2) == [0, 0]
