"""A run directory on a real S3 server behind a network that is slow, refuses, and cuts requests in the middle."""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest

from dcdist.filesystems import StorageError
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_storage
from tests.runs.conftest import experiment
from tests.runs.faulty_proxy import Action, FaultyProxy, Rule
from tests.runs.processes import assert_same_state, run, start_run, write_config
from tests.runs.test_s3 import URL, environment, fetched_state

CHECKPOINTS = f"{URL}/checkpoints"


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_config(tmp_path: Path, digits_folder: Path) -> Path:
    """The experiment with fewer checkpoints: of clusterings at step 0, 7, 14, of epochs at 7, 14, 21, the final one."""
    values = experiment(digits_folder, URL)
    return write_config(tmp_path / "config.yaml", {**values, "checkpoint": {"every_num_steps": 100}})


def through(proxy: FaultyProxy, **more: str) -> dict[str, str]:
    return {**environment(), "AWS_ENDPOINT_URL": proxy.url, **more}


def retry_soon() -> None:
    """In a rank: only botocore retries, as AWS_MAX_ATTEMPTS says, and without its pauses of seconds."""
    import botocore.retryhandler
    import s3fs

    botocore.retryhandler.delay_exponential = lambda **_: 0.001
    s3fs.S3FileSystem.retries = 1


def beginnings() -> list[str | None]:
    """What each attempt began from; "nothing was recorded" where it died before it knew."""
    run_directory = RunDirectory(URL)
    attempts = map(run_directory.read_attempt, run_directory.attempt_numbers())
    return [attempt.get("began_from", "nothing was recorded") for attempt in attempts]


def test_the_proxy_passes_on_what_clients_send(proxy: FaultyProxy) -> None:
    client = boto3.client("s3", endpoint_url=proxy.url)
    client.put_object(Bucket="bucket", Key="one", Body=io.BytesIO(b"after 100 Continue"))
    client.close()
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"))
    connection.request("PUT", "/bucket/two", iter([b"in ", b"chunks"]), encode_chunked=True)
    assert connection.getresponse().read() == b""
    connection.close()
    storage = open_storage("s3://bucket")
    assert (storage.read_bytes("one"), storage.read_bytes("two")) == (b"after 100 Continue", b"in chunks")
    assert proxy.num_requests == 2


def test_slow_answers(
    proxy: FaultyProxy, s3_config: Path, undisturbed: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    assert run(s3_config, DCDIST_FAULT="train:step:15:*:SIGTERM", **environment()) == [75]
    slow = Rule(Action.DELAY, seconds=0.05)
    proxy.rules = [slow]
    assert run(s3_config, **through(proxy)) == [0]
    assert slow.num_applied == proxy.num_requests > 100
    assert beginnings() == [None, "step-00000015-train.0001"]
    assert_same_state(fetched_state(tmp_path), undisturbed[1])


def test_every_third_request_is_refused(
    proxy: FaultyProxy,
    s3_config: Path,
    undisturbed: dict[int, dict[str, Any]],
    tmp_path: Path,
) -> None:
    refusal = Rule(Action.REFUSE, counts=lambda count: count % 3 == 0)
    proxy.rules = [refusal]
    running = start_run(s3_config, environment=through(proxy), prepare=retry_soon)
    assert (running.wait(), running.errors()) == ([0], "")
    assert refusal.num_applied > 100
    assert_same_state(fetched_state(tmp_path), undisturbed[1])


def failure(config: Path, environment: dict[str, str]) -> str:
    """Starts a run that fails, with exit code 1 and one message; returns all that it wrote to stderr."""
    running = start_run(config, environment=environment, prepare=retry_soon)
    assert running.wait() == [1], running.errors()
    assert "Traceback" not in running.errors()
    assert running.errors().count("\ndcdist: ") + running.errors().startswith("dcdist: ") == 1, running.errors()
    return running.errors()


def test_everything_is_refused_from_some_moment_on(
    proxy: FaultyProxy,
    s3_config: Path,
    undisturbed: dict[int, dict[str, Any]],
    tmp_path: Path,
) -> None:
    there = through(proxy, AWS_MAX_ATTEMPTS="1")
    for first, message in {
        "config.yaml": f"StorageError: {URL}/config.yaml: ",
        "step-00000014-train.0002/COMMIT.json": f"CheckpointFailed: checkpoint {CHECKPOINTS}/step-00000014-train.0002 ",
        "assignments/deepcluster-2.parquet": f"StorageError: {URL}/assignments/deepcluster-2.parquet: ",
    }.items():
        proxy.rules = [Rule(Action.REFUSE, "PUT", first, then=Action.REFUSE)]
        said = failure(s3_config, there)
        assert f"dcdist: {message}" in said
        assert "SlowDown!" in said.partition(message)[2]
    proxy.rules = []
    assert run(s3_config, **there) == [0]
    assert beginnings() == [None, None, "step-00000007-clustered.0002", "step-00000014-clustered.0003"]
    assert_same_state(fetched_state(tmp_path), undisturbed[1])


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(proxy: FaultyProxy, s3_config: Path) -> None:
    there = through(proxy, AWS_MAX_ATTEMPTS="1")
    assert run(s3_config, DCDIST_FAULT="train:step:15:*:SIGTERM", **there) == [75]
    for unread in ("15-train.*COMMIT", "15-train.*method.safetensors"):
        proxy.rules = [Rule(Action.REFUSE, "GET", unread)]
        said = failure(s3_config, there)
        assert f"dcdist: StorageError: {CHECKPOINTS}/step-00000015-train.0001/" in said
        assert "passed over" not in said
    proxy.rules = []
    assert run(s3_config, **there) == [0]
    nothing = "nothing was recorded"
    assert beginnings() == [None, nothing, nothing, "step-00000015-train.0001"]


def twice(count: int) -> bool:
    """So often that the client of HTTP, which repeats by itself what fails on a used connection, has to give up."""
    return count <= 2


def test_cut_requests_are_retried(
    proxy: FaultyProxy,
    s3_config: Path,
    undisturbed: dict[int, dict[str, Any]],
    tmp_path: Path,
) -> None:
    cuts = [
        (Action.RESET_AFTER, "PUT", "attempts/0001.json"),  # created, which the retry finds
        (Action.RESET_AFTER, "PUT", "keys.parquet"),
        (Action.RESET_BEFORE, "PUT", "step-00000000-clustered.*method.safetensors"),
        (Action.RESET_IN_BODY, "PUT", "step-00000007-train.*method.safetensors"),
        (Action.RESET_AFTER, "PUT", "step-00000007-clustered.*method.safetensors"),
        (Action.RESET_BEFORE, "PUT", "step-00000000-clustered.*COMMIT.json"),
        (Action.RESET_IN_BODY, "PUT", "step-00000007-train.*COMMIT.json"),
        (Action.RESET_AFTER, "PUT", "step-00000007-clustered.*COMMIT.json"),
        (Action.RESET_AFTER, "DELETE", "COMMIT.json"),
        (Action.RESET_AFTER, "POST", "delete"),
    ]
    proxy.rules = [Rule(*cut, counts=twice) for cut in cuts]
    running = start_run(s3_config, environment=through(proxy), prepare=retry_soon)
    assert (running.wait(), running.errors()) == ([0], "")
    assert [rule.num_applied for rule in proxy.rules] == [2] * len(cuts)
    # The attempt does not know its own file again: it leaves the number to nobody and takes the next one.
    assert beginnings() == ["nothing was recorded", None]
    run_directory = RunDirectory(URL)
    assert "ended" not in run_directory.read_attempt(1)
    assert run_directory.read_attempt(2)["ended"]["reason"] == "done"
    assert {(info.name.attempt, info.state) for info in run_directory.inventory()} == {(2, "ok")}
    assert_same_state(fetched_state(tmp_path), undisturbed[1])


def test_a_cut_commit_is_whole_or_not_believed(
    proxy: FaultyProxy,
    s3_config: Path,
    undisturbed: dict[int, dict[str, Any]],
    tmp_path: Path,
) -> None:
    # What is cut, and where the next attempt begins; one attempt after the other, each gets some steps further.
    cuts = [
        (Rule(Action.RESET_IN_BODY, "PUT", "7-train.*method.safetensors"), "step-00000000-clustered.0001"),
        (Rule(Action.RESET_AFTER, "PUT", "7-train.*method.safetensors"), "step-00000000-clustered.0001"),
        (
            Rule(Action.RESET_IN_BODY, "PUT", "7-clustered.*COMMIT", then=Action.RESET_BEFORE),
            "step-00000007-train.0003",
        ),
        (Rule(Action.RESET_AFTER, "PUT", "14-train.*COMMIT"), "step-00000007-clustered.0004"),
        (Rule(Action.HOLD, "PUT", "14-clustered.*COMMIT"), "step-00000014-train.0005"),
        # Nobody can take the commit back that the server has got, and it is whole.
        (Rule(Action.RESET_AFTER, "PUT", "21-train.*COMMIT", then=Action.RESET_BEFORE), "step-00000021-train.0006"),
    ]
    there = through(proxy, AWS_MAX_ATTEMPTS="1")
    said, delivered = [], []
    for rule, _ in cuts:
        proxy.rules = [rule]
        said.append(failure(s3_config, there))
        assert "CheckpointFailed: checkpoint " in said[-1]
        assert "the newest good checkpoint is " in said[-1]
        delivered += proxy.deliver()
    # The held commit came when the run had cleared up what it vouches for.
    assert set(delivered) == {200}
    assert ["passed over" in text for text in said] == [False] * 5 + [True]
    assert "checkpoint step-00000014-clustered.0005 is damaged and passed over" in said[-1]
    # The last start reads the checkpoint over connections that break, with retries.
    proxy.rules = [Rule(Action.RESET_IN_ANSWER, "GET", "safetensors$", counts=twice)]
    assert run(s3_config, **through(proxy)) == [0]
    assert proxy.rules[0].num_applied == 2
    assert beginnings() == [None, *(began_from for _, began_from in cuts)]
    assert_same_state(fetched_state(tmp_path), undisturbed[1])


def test_a_taken_number_where_the_server_does_not_say_which_condition_failed(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    type(fsspec.filesystem("s3")).clear_instance_cache()
    run_directory = RunDirectory(URL)
    proxy.rules = [
        Rule(Action.REFUSE, "PUT", "attempts/0001.json", error=(412, "PreconditionFailed")),
        Rule(Action.REFUSE, "PUT", "attempts/0003.json", error=(403, "AccessDenied")),
    ]
    assert run_directory.begin_attempt({}).number == 2
    with pytest.raises(StorageError, match=f"{URL}/attempts/0003.json: AccessDenied!"):
        run_directory.begin_attempt({})
    assert [rule.num_applied for rule in proxy.rules] == [1, 1]
    assert run_directory.attempt_numbers() == [2]
