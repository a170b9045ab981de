"""The processes that load images: started once, out of a server that has no threads, and ended in every case.

A fork of a process with threads may wait for ever for a lock that one of them held, and a training process has many:
OpenMP's, gloo's, autograd's, those that write metrics. So workers are forked from a server that only imports.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dcdist.errors import RunError

_FEEDER = "QueueFeederThread"  # as multiprocessing names those that write keys to the workers
_SECONDS_TO_END = 2.0
_HANDLED_BY_MAIN = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def start_server(imports: Sequence[str] = ("dcdist.data.loader",)) -> None:
    """Starts the server, which imports while the caller goes on; called early it costs no waiting later.

    Its children begin with the signals blocked that the main process handles. Where it runs nothing happens.
    """
    multiprocessing.set_forkserver_preload(list(imports))
    for server in (resource_tracker, forkserver):  # in this order, for the first unblocks signals when it starts
        with _signals_blocked():
            server.ensure_running()


class LoaderProcesses:
    """Worker processes that turn keys into values of a data set, in order, one pass after another.

    They leave SIGTERM, SIGINT and SIGUSR2 to the main process and end with it, however it ends.

    Args:
        dataset: key -> value; it pickles.
        num_workers: how many, at least one.
        prefetch: keys in flight for each.
        pin_memory: page-lock the tensors of the values.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int, prefetch: int, pin_memory: bool) -> None:
        self.keys: Iterator[Any] = iter(())
        self._iterator: Any = None
        self._loader: DataLoader[Any] | None = None
        self._arguments: dict[str, Any] = {
            "dataset": dataset,
            "num_workers": num_workers,
            "prefetch_factor": prefetch,
            "pin_memory": pin_memory,
        }

    def run(self, keys: Iterator[Any]) -> Iterator[Any]:
        """The values of the keys, in order. What an earlier pass has left is dropped.

        Raises:
            RunError: a worker was killed.
        """
        self.keys = keys
        try:
            if self._loader is None:
                self._start()
            else:
                iter(self._loader)  # resets the iterator that persists
            yield from self._iterator
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            raise RunError(
                f"a process that loads images was killed ({error}): out of memory, or /dev/shm is full? "
                "Fewer workers or a smaller prefetch need less"
            ) from error

    def _start(self) -> None:
        start_server()
        with _signals_blocked(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the number is the user's
            self._loader = DataLoader(
                **self._arguments,
                batch_size=None,
                sampler=_Latest(self),
                collate_fn=_as_it_is,
                worker_init_fn=_begin,
                multiprocessing_context="forkserver",
                persistent_workers=True,
                generator=torch.Generator(),  # else it would draw from the global one
            )
            self._iterator = iter(self._loader)
        # After multiprocessing's own, so that it runs before it: that one sends SIGTERM and then waits for ever.
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the processes."""
        atexit.unregister(self.close)
        iterator, self._iterator, self._loader = self._iterator, None, None
        if iterator is None:
            return
        iterator._shutdown_workers()
        for worker in iterator._workers:
            if worker.is_alive():  # stuck, in a file system that hangs: SIGTERM it ignores
                worker.kill()
        for thread in threading.enumerate():
            if thread.name == _FEEDER:  # holds semaphores, which count as leaked where the process leaves at once
                thread.join(_SECONDS_TO_END)


class _Latest:
    """As a DataLoader wants its keys: what it iterates over is each pass's own."""

    def __init__(self, processes: LoaderProcesses) -> None:
        self._processes = processes

    def __iter__(self) -> Iterator[Any]:
        return self._processes.keys


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started meanwhile inherits the mask, so that none of it dies of a signal before it can ignore it."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_BY_MAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _as_it_is(result: Any) -> Any:
    return result


def _begin(_worker: int) -> None:
    """In a worker, first of all: what the main process decides is its own, but its end is ours."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    for number in _HANDLED_BY_MAIN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED_BY_MAIN)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
