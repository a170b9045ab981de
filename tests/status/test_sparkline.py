"""Rows of characters, by hand."""

from __future__ import annotations

import pytest

from dcdist.status.sparkline import ASCII, BLOCKS, bar, sparkline


@pytest.mark.parametrize(
    ("values", "width", "least_span", "expected"),
    [
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 20, 0.0, "▁▂▃▄▅▆▇█"),
        ([8.0, 4.0, 0.0], 20, 0.0, "█▅▁"),  # half of the height is the lower end of the fifth level
        ([2.0, None, 1.0], 20, 0.0, "█ ▁"),
        ([None, None], 20, 0.0, "  "),
        ([], 20, 0.0, ""),
        ([3.0, 3.0], 20, 0.0, "▄▄"),
        ([0.0, 2.0, 5.0, 9.0], 2, 0.0, "▁█"),  # means 1 and 7
        ([1.0, None, None, None, 0.0, 0.0], 3, 0.0, "█ ▁"),
        ([4.0, 1.0, 1.0], 2, 0.0, "█▁"),  # the first value alone, the mean of the two others
        ([0.98, 0.99], 20, 0.08, "▄▅"),  # the scale is 0.945 to 1.025: 0.035 / 0.08 and 0.045 / 0.08 of 8 levels
        ([0.5], 20, 0.1, "▄"),
        ([1.0, 2.0], 0, 0.0, ""),
        ([1.0, 2.0], -3, 0.0, ""),
    ],
)
def test_levels(values: list[float | None], width: int, least_span: float, expected: str) -> None:
    assert sparkline(values, width, BLOCKS, least_span) == expected


def test_in_ascii() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, ASCII) == "_.-=+*%#"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.0, "----------"), (0.55, "#####-----"), (0.999, "#########-"), (1.0, "##########"), (1.2, "##########")],
)
def test_bar(ratio: float, expected: str) -> None:
    assert "".join(bar(ratio, 10, ASCII)).replace(".", "-") == expected
