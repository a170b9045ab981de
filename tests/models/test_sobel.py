"""The fixed stem: equal to the published pair of convolutions, in full precision, without parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcdist.models.sobel import Sobel


def published() -> nn.Sequential:
    """1x1 convolution with weights 1/3, then two 3x3 filters, padding 1, no bias."""
    grey = nn.Conv2d(3, 1, 1)
    edges = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        grey.weight.fill_(1 / 3)
        edges.weight[0, 0] = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        edges.weight[1, 0] = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
        grey.bias.zero_()
        edges.bias.zero_()
    return nn.Sequential(grey, edges)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_published_convolutions(memory_format: torch.memory_format) -> None:
    images = torch.randn(4, 3, 17, 23, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published()(images)
    found = Sobel()(images.contiguous(memory_format=memory_format))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_values_by_hand() -> None:
    image = torch.zeros(1, 3, 3, 3)
    image[0, :, 1, 2] = torch.tensor([1.0, 2.0, 3.0])  # grey 2 at the middle of the right column
    horizontal, vertical = Sobel()(image)[0]
    assert horizontal.tolist() == [[0, -2, 0], [0, -4, 0], [0, -2, 0]]
    assert vertical.tolist() == [[0, -2, -4], [0, 0, 0], [0, 2, 4]]


def test_has_no_state_and_stays_in_full_precision_under_autocast() -> None:
    sobel = Sobel()
    assert list(sobel.parameters()) == []
    assert sobel.state_dict() == {}
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sobel(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, sobel(images))
