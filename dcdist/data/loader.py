"""Turns requests into batches of pixels, in worker processes, in order; a batch depends on its request alone.

Shapes: B images of a request, S pixels a side.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dcdist.data.decode import UndecodableImage, decode_image
from dcdist.data.loader_processes import LoaderProcesses
from dcdist.data.transforms import View
from dcdist.data.types import ImageSource
from dcdist.distributed.seeding import numpy_generator
from dcdist.errors import DcdistError

logger = logging.getLogger(__name__)


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


class Pixels(NamedTuple):
    """What a worker sends back: the rest of the batch is known to the main process."""

    views: tuple[torch.Tensor, ...]
    failures: tuple[tuple[int, str], ...]


class Loading(Dataset["Pixels | DcdistError"]):
    """Requests as keys (with the number of their source), pixels as values, as torch's DataLoader wants it."""

    def __init__(self, sources: Sequence[ImageSource], shared: bool) -> None:
        self._sources = sources
        self._shared = shared

    def __getitem__(self, key: tuple[int, Request]) -> Pixels | DcdistError:
        number, request = key
        try:
            return self._load(self._sources[number], request)
        except DcdistError as error:
            return error  # as a value: raised through the DataLoader its message would drown in a traceback

    def _load(self, source: ImageSource, request: Request) -> Pixels:
        count = len(request.sample_ids)
        views = tuple(self._empty(count, view.size) for view in request.views)
        draws = [view.draw(numpy_generator(request.seed, number), count) for number, view in enumerate(request.views)]
        failures = []
        for index, sample_id in enumerate(request.sample_ids.tolist()):
            try:
                image = decode_image(source.read(sample_id))
            except UndecodableImage as error:
                failures.append((sample_id, str(error)))
                for pixels in views:
                    pixels[index].zero_()
                continue
            for view, view_draws, pixels in zip(request.views, draws, views, strict=True):
                pixels[index] = view.apply(image, view_draws, index)
        return Pixels(views, tuple(failures))

    def _empty(self, count: int, size: int) -> torch.Tensor:
        pixels = torch.empty((count, size, size, 3), dtype=torch.uint8)
        # Pixels are written straight into the memory that the main process will read, not copied at the end.
        if self._shared:
            pixels.share_memory_()  # type: ignore[no-untyped-call]
        return pixels


class BatchLoader:
    """Loads images of some sources, in processes that live until it is closed.

    An image that does not decode is named in the log once a source, with the reason, and recorded in
    `source.undecodable`.

    Args:
        sources: where the images are; they pickle.
        num_workers: processes that decode; 0 decodes in this one.
        prefetch: requests in flight for each worker.
        pin_memory: page-lock the batches, for copies to a GPU that do not block.
    """

    def __init__(
        self, sources: Sequence[ImageSource], num_workers: int, prefetch: int = 4, pin_memory: bool = False
    ) -> None:
        self._sources = sources
        self._pin_memory = pin_memory
        self._loading = Loading(sources, shared=num_workers > 0)
        self._processes = LoaderProcesses(self._loading, num_workers, prefetch, pin_memory) if num_workers > 0 else None

    def load(self, source: ImageSource, requests: Iterable[Request]) -> Iterator[Batch]:
        """Loads requests of one of the sources in their order; a pass that was begun before ends.

        Raises:
            RunError: an image file is not there any more, or a worker was killed.
        """
        number = next(number for number, own in enumerate(self._sources) if own is source)
        in_flight: deque[Request] = deque()
        failure: list[Exception] = []

        def drawn() -> Iterator[tuple[int, Request]]:
            try:
                for request in requests:
                    in_flight.append(request)
                    yield number, request
            except Exception as error:  # kept until the batches before it are through, however far ahead it was drawn
                failure.append(error)

        results: Iterator[Pixels | DcdistError] = (
            self._processes.run(drawn()) if self._processes else (self._loading[key] for key in drawn())
        )
        for result in results:
            if isinstance(result, DcdistError):
                raise result
            batch = _complete(in_flight.popleft(), result)
            _report(source, batch.failures)
            yield batch.pin_memory() if self._pin_memory else batch
        if failure:
            raise failure[0]

    def close(self) -> None:
        """Ends the processes."""
        if self._processes:
            self._processes.close()


def _complete(request: Request, pixels: Pixels) -> Batch:
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
