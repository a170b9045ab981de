"""Checkpoints on a real S3 server, which then fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
import torch

from dcdist import storage as storage_module
from dcdist.engine.checkpoint import CheckpointFailed
from dcdist.errors import StopRequested
from dcdist.run_directory import RunDirectory
from tests.engine.checkpoint_states import Holder, begin, folders, save, start, train

URL = "s3://bucket/runs/one"


def test_saves_prunes_and_goes_on(s3_server: str) -> None:
    assert s3_server
    train(URL, range(1, 4))
    assert folders(URL) == ["step-00000002-train.0001", "step-00000003-train.0001"]
    checkpointer, step = begin(URL)
    assert step == 3
    save(checkpointer, 4)
    assert [info.state for info in RunDirectory(URL).inventory()] == ["ok", "ok"]
    begin(URL)
    with pytest.raises(StopRequested):
        save(checkpointer, 5)


def test_falls_back_past_damage(s3_server: str, caplog: pytest.LogCaptureFixture) -> None:
    assert s3_server
    train(URL, range(1, 3))
    path = "checkpoints/step-00000002-train.0001/model.safetensors"
    storage = RunDirectory(URL).storage
    storage.write_bytes(path, storage.read_bytes(path)[:-1])
    assert begin(URL)[1] == 1
    assert f"{path} has " in caplog.text


@pytest.mark.parametrize(("label", "newest"), [("data", 1), ("commit", 1), ("committed", 2)])
def test_killed_at(s3_server: str, label: str, newest: int) -> None:
    assert s3_server
    process = start(train, URL, range(1, 4), fault=f"checkpoint:{label}:2")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert begin(URL)[1] == newest


@contextmanager
def server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        type(fsspec.filesystem("s3")).clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield process
    finally:
        process.kill()
        process.wait()


class Deadly(Holder):
    """A state after which nothing can be stored any more."""

    def __init__(self, state: Mapping[str, Any], server: subprocess.Popen[bytes]) -> None:
        super().__init__(state)
        self.server = server

    def state_dict(self) -> Mapping[str, Any]:
        self.server.kill()
        self.server.wait()
        return super().state_dict()


def test_a_server_that_dies_during_a_save(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_server
    with server_of_its_own(monkeypatch) as server:
        checkpointer, _ = begin(URL)
        save(checkpointer, 1)
        with pytest.raises(CheckpointFailed) as error:
            checkpointer.save(2, "train", {"model": Deadly({"weight": torch.zeros(3)}, server)}, {})
    message = str(error.value)
    assert f"rank 0: {URL}/checkpoints/step-00000002-train.0001/model.json: " in message
    assert "Could not connect to the endpoint" in message
    assert "the newest good checkpoint is step-00000001-train.0001" in message


def test_a_server_that_answers_no_more(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_server
    with server_of_its_own(monkeypatch) as server:
        checkpointer, _ = begin(URL)
        save(checkpointer, 1)
        os.kill(server.pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(storage_module, "ANSWER_WITHIN_SECONDS", 1.0)
            with pytest.raises(CheckpointFailed, match="the server does not answer"):
                save(checkpointer, 2)
            with pytest.raises(OSError, match="the server does not answer"):
                RunDirectory(URL).storage.exists("config.yaml")
        os.kill(server.pid, signal.SIGCONT)
        assert begin(URL)[1] == 1
