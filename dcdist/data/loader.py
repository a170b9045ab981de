"""Turns requests into batches of pixels, in worker processes, in order; a batch depends on its request alone.

Shapes: B images of a request, S pixels a side.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling as torch_signals

from dcdist.data.decode import UndecodableImage, decode_image
from dcdist.data.transforms import View
from dcdist.data.types import ImageSource
from dcdist.distributed.seeding import numpy_generator
from dcdist.errors import DcdistError, RunError

logger = logging.getLogger(__name__)

_HANDLED_BY_MAIN = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


class Request(NamedTuple):
    """What to load: B images, each in every view."""

    sample_ids: np.ndarray[Any, Any]  # [B] int64
    targets: np.ndarray[Any, Any] | None  # [B] int64
    views: tuple[View, ...]
    seed: int  # of all randomness in the views


class Batch(NamedTuple):
    """What a request became."""

    views: tuple[torch.Tensor, ...]  # of each view uint8 [B, S, S, 3]; zeros where an image did not decode
    sample_ids: torch.Tensor  # [B] int64
    targets: torch.Tensor | None  # [B] int64
    decoded: torch.Tensor  # [B] bool
    seed: int
    failures: tuple[tuple[int, str], ...]  # sample_id and reason of each image that did not decode

    def to(self, device: torch.device | str) -> Batch:
        """The tensors on `device`; the copy does not block where the batch is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The tensors in page-locked memory."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Any) -> Batch:
        return self._replace(
            views=tuple(function(view) for view in self.views),
            sample_ids=function(self.sample_ids),
            targets=None if self.targets is None else function(self.targets),
            decoded=function(self.decoded),
        )


class _Pixels(NamedTuple):
    """What a worker sends back: the rest of the batch is known to the main process."""

    views: tuple[torch.Tensor, ...]
    failures: tuple[tuple[int, str], ...]


_Results = Generator["_Pixels | DcdistError", None, None]


class _Loading(Dataset["_Pixels | DcdistError"]):
    """Requests as keys, pixels as values, in the form that torch's DataLoader wants."""

    def __init__(self, source: ImageSource, shared: bool) -> None:
        self._source = source
        self._shared = shared

    def __getitem__(self, request: Request) -> _Pixels | DcdistError:
        try:
            return self._load(request)
        except DcdistError as error:
            return error  # as a value: raised through the DataLoader its message would drown in a traceback

    def _load(self, request: Request) -> _Pixels:
        count = len(request.sample_ids)
        views = tuple(self._empty(count, view.size) for view in request.views)
        draws = [view.draw(numpy_generator(request.seed, number), count) for number, view in enumerate(request.views)]
        failures = []
        for index, sample_id in enumerate(request.sample_ids.tolist()):
            try:
                image = decode_image(self._source.read(sample_id))
            except UndecodableImage as error:
                failures.append((sample_id, str(error)))
                for pixels in views:
                    pixels[index].zero_()
                continue
            for view, view_draws, pixels in zip(request.views, draws, views, strict=True):
                pixels[index] = view.apply(image, view_draws, index)
        return _Pixels(views, tuple(failures))

    def _empty(self, count: int, size: int) -> torch.Tensor:
        pixels = torch.empty((count, size, size, 3), dtype=torch.uint8)
        # Pixels are written straight into the memory that the main process will read, not copied at the end.
        if self._shared:
            pixels.share_memory_()  # type: ignore[no-untyped-call]
        return pixels


def load_batches(
    source: ImageSource, requests: Iterable[Request], num_workers: int, prefetch: int = 4, pin_memory: bool = False
) -> Iterator[Batch]:
    """Loads requests in their order.

    An image that does not decode is named in the log once a source, with the reason, and recorded in
    `source.undecodable`. The workers leave SIGTERM, SIGINT and SIGUSR2 to the main process and die with it; closing the
    iterator ends them.

    Args:
        source: Where the images are.
        requests: Drawn from as far ahead as `prefetch` says.
        num_workers: Processes that decode; 0 decodes in this one.
        prefetch: Requests in flight for each worker.
        pin_memory: Page-lock the batches, for copies to a GPU that do not block.

    Raises:
        RunError: an image file is not there any more, or a worker was killed.
    """
    in_flight: deque[Request] = deque()

    failure: list[Exception] = []

    def drawn() -> Iterator[Request]:
        try:
            for request in requests:
                in_flight.append(request)
                yield request
        except Exception as error:  # kept until the batches before it are through, however far ahead it was drawn
            failure.append(error)

    loading = _Loading(source, shared=num_workers > 0)
    if num_workers == 0:
        results = _results_here(loading, drawn())
    else:
        results = _results_of_workers(loading, drawn(), num_workers, prefetch, pin_memory)
    try:
        for result in results:
            if isinstance(result, DcdistError):
                raise result
            batch = _complete(in_flight.popleft(), result)
            _report(source, batch.failures)
            yield batch.pin_memory() if pin_memory else batch
        if failure:
            raise failure[0]
    finally:
        results.close()


def _results_here(loading: _Loading, requests: Iterator[Request]) -> _Results:
    for request in requests:
        yield loading[request]


def _results_of_workers(
    loading: _Loading, requests: Iterator[Request], num_workers: int, prefetch: int, pin_memory: bool
) -> _Results:
    # Workers are born with these signals blocked, so that none of them dies of one before it can ignore it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_BY_MAIN)
    others = set(multiprocessing.active_children())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # workers touch no lock of our threads
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the number is the user's
            loader: DataLoader[_Pixels | DcdistError] = DataLoader(
                loading,
                batch_size=None,
                sampler=requests,
                num_workers=num_workers,
                prefetch_factor=prefetch,
                pin_memory=pin_memory,
                collate_fn=_as_it_is,
                worker_init_fn=partial(_start_worker, os.getpid()),
                multiprocessing_context="fork",  # shares the source's memory; nothing is imported anew
                generator=torch.Generator(),  # else it would draw from the global one
            )
            iterator: Any = iter(loader)
    except OSError:  # no memory to fork, and some workers may run already
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Else torch raises a worker's death in the midst of whatever the main process is at; we want it from next() alone.
    torch_signals._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    end_workers = partial(_end_workers, iterator, os.getpid())
    # Registered after multiprocessing's own, so it runs before it: that one sends SIGTERM and then waits for ever.
    atexit.register(end_workers)
    try:
        yield from iterator
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise RunError(
            f"a process that loads images was killed ({error}): out of memory, or /dev/shm is full? "
            "Fewer workers or a smaller prefetch need less"
        ) from error
    finally:
        atexit.unregister(end_workers)
        end_workers()


def _end_workers(iterator: Any, main_process: int) -> None:
    if os.getpid() != main_process:  # a process that was forked from it, at its own exit
        return
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():  # stuck, in a file system that hangs: SIGTERM it ignores
            worker.kill()


def _as_it_is(result: Any) -> Any:
    return result


def _start_worker(parent: int, _worker: int) -> None:
    """In a worker, first of all: what the main process decides is its own, but its end is ours."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)
    for number in _HANDLED_BY_MAIN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED_BY_MAIN)


def _complete(request: Request, pixels: _Pixels) -> Batch:
    failed = [sample_id for sample_id, _ in pixels.failures]
    return Batch(
        views=pixels.views,
        sample_ids=torch.tensor(request.sample_ids, dtype=torch.int64),
        targets=None if request.targets is None else torch.tensor(request.targets, dtype=torch.int64),
        decoded=torch.from_numpy(~np.isin(request.sample_ids, failed)),
        seed=request.seed,
        failures=pixels.failures,
    )


def _report(source: ImageSource, failures: tuple[tuple[int, str], ...]) -> None:
    for sample_id, reason in failures:
        if sample_id not in source.undecodable:
            source.undecodable[sample_id] = reason
            logger.warning("image %r does not decode: %s", source.keys[sample_id], reason)
