"""Examples of a list of images, each a function of the image and of a seed, made in worker processes and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset

from dcdist.data.loader_processes import LoaderProcesses
from dcdist.data.voc import VocImage
from dcdist.errors import DcdistError

Key = tuple[int, int]  # the image's index, and the seed of all that is random
_PREFETCH = 8


class _Examples(Dataset[Any]):
    """Keys -> (index, example), or the error as a value: raised in a worker its message would drown in a traceback."""

    def __init__(self, images: Sequence[VocImage], make: Callable[[VocImage, int], Any]) -> None:
        self._images = images
        self._make = make

    def __getitem__(self, key: Key) -> tuple[int, Any] | DcdistError:
        index, seed = key
        try:
            return index, self._make(self._images[index], seed)
        except DcdistError as error:
            return error


class SeededExamples:
    """Makes examples, in processes that live until it is closed.

    Args:
        images: N images.
        make: image and seed -> example, tensors or tuples of them; it pickles.
        num_workers: processes; 0 works in this one.
        pin_memory: page-lock the tensors, for copies to a GPU that do not block.
    """

    def __init__(
        self,
        images: Sequence[VocImage],
        make: Callable[[VocImage, int], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.images = images
        self._examples = _Examples(images, make)
        self._processes = LoaderProcesses(self._examples, num_workers, _PREFETCH, pin_memory) if num_workers else None

    def __len__(self) -> int:
        return len(self.images)

    def load(self, keys: Iterable[Key]) -> Iterator[tuple[int, Any]]:
        """Index and example of each key, in order.

        Raises:
            UsageError: an image is not there any more or does not decode.
            RunError: a worker was killed.
        """
        results = self._processes.run(iter(keys)) if self._processes else map(self._examples.__getitem__, keys)
        for result in results:
            if isinstance(result, DcdistError):
                raise result
            yield result

    def close(self) -> None:
        """Ends the processes."""
        if self._processes:
            self._processes.close()
