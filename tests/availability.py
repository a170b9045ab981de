"""What tests need from outside of the checkout."""

from __future__ import annotations

import os

import pytest


def unavailable(reason: str) -> None:
    """Skips the test where something outside of the checkout is missing; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
