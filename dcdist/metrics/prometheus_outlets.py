"""A thread that keeps what others find a run's metrics by: none of its failures reaches the training."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from dcdist.metrics.recorder import Retried

REFRESH_EVERY_SECONDS = 15.0
LAST_LOOK_SECONDS = 30.0  # two of Prometheus' usual intervals
_CLOSE_SECONDS = 5.0


class Outlet(Protocol):
    """Where others find the metrics, as prometheus_endpoint and prometheus_files have it.

    All but the constructor runs in a thread.
    """

    def refresh(self) -> None:
        """Called at once, and then every REFRESH_EVERY_SECONDS."""
        ...

    def last_look(self) -> None:
        """Returns when the figures as they are now have been seen, after LAST_LOOK_SECONDS at most."""
        ...

    def close(self) -> None:
        """Takes away what others would find."""
        ...


class KeptOutlets:
    """Outlets, refreshed and at the end closed in a thread of their own.

    One that fails is a warning and tried again; one that hangs, as a network file system can, holds up nobody.
    """

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = [
            (outlet, Retried(f"metrics for Prometheus: {type(outlet).__name__} fails", Exception)) for outlet in outlets
        ]
        self._closed = threading.Event()
        self._awaits_last_look = False
        self._thread = threading.Thread(target=self._keep, name="dcdist-prometheus", daemon=True)
        self._thread.start()

    def close(self, last_look: bool) -> None:
        """Waits until the figures have been seen where `last_look` asks for it, then takes all away."""
        self._awaits_last_look = last_look
        self._closed.set()
        looks = len(self._outlets) * LAST_LOOK_SECONDS if last_look else 0.0
        self._thread.join(looks + _CLOSE_SECONDS)

    def _keep(self) -> None:
        is_over = False
        while not is_over:
            for outlet, retried in self._outlets:
                with retried:
                    outlet.refresh()
            is_over = self._closed.wait(REFRESH_EVERY_SECONDS)
        if self._awaits_last_look:
            for outlet, retried in self._outlets:
                with retried:
                    outlet.last_look()
        for outlet, retried in self._outlets:
            with retried:
                outlet.close()
