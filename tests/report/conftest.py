"""Real digits for pictures."""

from __future__ import annotations

from tests.runs.conftest import digits_folder

__all__ = ["digits_folder"]
