"""The small experiment of the run tests."""

from tests.runs.conftest import digits_folder

__all__ = ["digits_folder"]
