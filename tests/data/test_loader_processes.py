"""Worker processes beside the threads of the main process: theirs, and those that feed them."""

from __future__ import annotations

import logging
import multiprocessing.queues
import threading
import time
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from dcdist.data.loader_processes import LoaderProcesses


class Squares(Dataset[int]):
    def __getitem__(self, key: int) -> int:
        return key * key


def squares() -> LoaderProcesses:
    return LoaderProcesses(Squares(), num_workers=2, prefetch=2, pin_memory=False)


def test_closing_waits_for_the_threads_that_feed_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold semaphores, which are reported as leaked when a process leaves while one of them still ends."""
    feed = multiprocessing.queues.Queue._feed

    def feed_and_dawdle(*args: Any) -> None:
        feed(*args)
        time.sleep(0.2)

    monkeypatch.setattr(multiprocessing.queues.Queue, "_feed", staticmethod(feed_and_dawdle))
    before = set(threading.enumerate())
    processes = squares()
    assert list(processes.run(iter(range(9)))) == [key * key for key in range(9)]
    assert len(set(threading.enumerate()) - before) == 2
    processes.close()
    assert set(threading.enumerate()) <= before


def test_workers_do_not_need_what_a_thread_of_the_main_process_holds() -> None:
    """Such as a lock of the interpreter, or of the logging module."""
    stop = threading.Event()
    threads = [threading.Thread(target=keep_logging, args=(stop,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            processes = squares()
            assert list(processes.run(iter(range(9)))) == [key * key for key in range(9)]
            processes.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def keep_logging(stop: threading.Event) -> None:
    logger = logging.getLogger("somebody")
    while not stop.is_set():
        logger.warning("x")
        torch.ones(64, 64) @ torch.ones(64, 64)
        time.sleep(0.001)
