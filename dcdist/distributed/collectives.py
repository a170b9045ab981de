"""Collective operations as an argument: one process is the identity, so algorithms are written once for any number.

Shapes: n rows on this rank, N rows on all ranks together, D columns.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dcdist.errors import DcdistError, ExitCode, PeerLost, RunError, UsageError

T = TypeVar("T")

_PEER_LOST_MESSAGES = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "socket closed",
    "timed out waiting",
    "application timeout",
    "operation timed out",
    "read error",
    "writev error",
    "wait timeout",
    "nccl",
    "gloo",
    "failed to recv",
    "broken promise",
)
_WORD = "dcdist/word"  # in the store: why a process ended by itself
_WORD_TIMEOUT = timedelta(seconds=10)


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error of torch says that another process of the group is gone (backward passes raise it too)."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _PEER_LOST_MESSAGES)


@contextlib.contextmanager
def noticing_lost_peers() -> Iterator[None]:
    """Inside, an error of torch that says so becomes PeerLost."""
    try:
        yield
    except RuntimeError as error:
        if is_peer_lost(error):
            raise PeerLost(f"another process of the run died or stopped answering: {error}") from error
        raise


class Collectives:
    """The operations that dcdist needs between the processes of one run; with one process each is the identity.

    `group` carries CPU tensors (gloo); CUDA tensors go over the default group where that has NCCL.
    Every method is collective: each rank calls it, in the same order. All raise PeerLost where a process is gone.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: dist.Store | None = None) -> None:
        """`store`: where they met; None: they leave no word there."""
        self.rank = rank
        self.world_size = world_size
        self._store = store

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums `tensor` over the ranks, in place; returns it."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_max(self, tensor: torch.Tensor) -> torch.Tensor:
        """The largest of each element over the ranks, in place; returns it."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def _all_reduce(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.world_size > 1:
            with noticing_lost_peers():
                dist.all_reduce(tensor, op=operation)
        return tensor

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """Overwrites `tensor` by that of rank `source`; returns it."""
        if self.world_size > 1:
            with noticing_lost_peers():
                dist.broadcast(tensor, src=source)
        return tensor

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value (anything that pickles) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        with noticing_lost_peers():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with noticing_lost_peers():
            dist.all_gather_object(values, value)
        return values

    def row_counts(self, rows: torch.Tensor) -> list[int]:
        """How many rows each rank holds, in rank order."""
        counts = torch.zeros(self.world_size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        return [int(count) for count in self.all_reduce_sum(counts)]

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor | None:
        """[n, ...] on each rank -> [N, ...] in rank order on rank 0, None elsewhere.

        Ranks send one after another straight into the result, so rank 0 holds no second copy.
        """
        if self.world_size == 1:
            return rows
        counts = self.row_counts(rows)
        with noticing_lost_peers():
            if not self.is_main:
                if len(rows):
                    dist.send(rows.contiguous(), dst=0)
                return None
            gathered = rows.new_empty((sum(counts), *rows.shape[1:]))
            gathered[: counts[0]] = rows
            start = counts[0]
            for source, count in enumerate(counts[1:], start=1):
                if count:
                    dist.recv(gathered[start : start + count], src=source)
                start += count
        return gathered

    def all_gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, ...] on each rank -> [N, ...] in rank order on every rank."""
        if self.world_size == 1:
            return rows
        counts = self.row_counts(rows)
        gathered = rows.new_empty((sum(counts), *rows.shape[1:]))
        start = 0
        for source, count in enumerate(counts):
            part = gathered[start : start + count]
            if source == self.rank:
                part.copy_(rows)
            if count:
                self.broadcast(part, source=source)
            start += count
        return gathered

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.largest(int(flag)) > 0

    def largest(self, value: int) -> int:
        """The largest of the ranks' small integers, on every rank."""
        if self.world_size == 1:
            return value
        return int(self.all_reduce_max(torch.tensor([value], dtype=torch.int64)))

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.largest(0)

    def on_main(self, function: Callable[[], T]) -> T:
        """Runs `function` on rank 0 alone; its value, or the error it raised, on every rank.

        Storage that fails (an OSError) becomes a RunError. What is unexpected is raised on rank 0, and a RunError that
        says so on the others: they would take rank 0 for lost, and be started again.
        """
        value, failure, unexpected = _outcome(function, self.rank) if self.is_main else (None, None, None)
        value, failure = self.broadcast_object((value, failure))
        if failure is not None:
            raise unexpected or failure
        return value  # type: ignore[return-value]

    def on_all(self, function: Callable[[], T]) -> T:
        """Runs `function`, which is not collective, on every rank; the rank's own value, or on every rank one error.

        That is wrong usage before all others, and the lowest rank's of several. Errors are as with `on_main`.
        """
        value, failure, unexpected = _outcome(function, self.rank)
        if failure is not None and not self.is_main:  # what holds on one machine alone
            kind = UsageError if failure.exit_code is ExitCode.USAGE else RunError
            failure = kind(f"rank {self.rank} on {socket.gethostname()}: {failure}")
        failures = [each for each in self.all_gather_objects(failure) if each is not None]
        if failures:
            raise unexpected or min(failures, key=lambda each: each.exit_code is not ExitCode.USAGE)
        return value  # type: ignore[return-value]

    def leave_word(self, reason: str) -> None:
        """Tells rank 0 why this process is about to end by itself: rank 0 would otherwise only see that it is gone."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set_timeout(_WORD_TIMEOUT)
                self._store.set(_WORD, f"rank {self.rank} on {socket.gethostname()}: {reason}")
                self._store.get(_WORD)  # it has arrived

    def word_left(self) -> str | None:
        """On rank 0: why another process ended, where one has said so."""
        with contextlib.suppress(RuntimeError):
            if self._store is not None and self._store.check([_WORD]):
                return bytes(self._store.get(_WORD)).decode()
        return None


def _outcome(function: Callable[[], T], rank: int) -> tuple[T | None, DcdistError | None, Exception | None]:
    """What a function gave, or its error as all ranks can have it, and the error itself where that was not expected."""
    try:
        return function(), None, None
    except DcdistError as error:
        return None, error, None
    except OSError as error:
        return None, RunError(f"storage failed: {error}"), None
    except Exception as error:
        return None, RunError(f"rank {rank} failed: {type(error).__name__}: {error}"), error
