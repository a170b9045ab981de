"""Embeddings behind a backbone: of length 1, of all views at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dcdist.models.backbone import Backbone
from dcdist.models.projection import ProjectedBackbone, Projector, embed_views


def projector(num_features: int = 4, hidden: int | None = 5, relu_first: bool = False) -> Projector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Projector(num_features, hidden, 3, relu_first)


def rows(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_a_linear_projector_by_hand() -> None:
    linear = Projector(2, None, 2, relu_first=False)
    with torch.no_grad():
        linear.layers.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        linear.layers.bias.copy_(torch.tensor([0.0, -2.0]))
    found = linear(torch.tensor([[3.0, 3.0], [-1.0, 1.0]]))  # (3, 4) and (-1, 0) before they get length 1
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))
    linear.relu_first = True
    torch.testing.assert_close(linear(torch.tensor([[3.0, -1.0]])), functional.normalize(torch.tensor([[3.0, -2.0]])))


def test_the_hidden_layer_has_batch_normalisation_and_relu() -> None:
    found = projector()
    first, second = found.layers[0], found.layers[3]
    hidden = rows() @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    expected = hidden.clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(found(rows()), expected / expected.norm(dim=1, keepdim=True))


def test_embeddings_have_length_one_in_full_precision_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = projector()(rows())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(8), rtol=1e-6, atol=0)


class Recorder(nn.Module):
    """Mean colours; remembers how many images of which side it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes.append((len(images), images.shape[-1]))
        return images.mean((2, 3))


def recording() -> tuple[Backbone, Recorder]:
    recorder = Recorder()
    return Backbone(nn.Identity(), nn.Sequential(), recorder, 3, 3, features_before_relu=False), recorder


def images(side: int, seed: int) -> torch.Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("sides", "passes"),
    [
        ((8, 8), [(8, 8)]),
        ((8, 8, 6, 6, 6), [(8, 8), (12, 6)]),
        ((8, 6, 8), [(4, 8), (4, 6), (4, 8)]),
        ((6,), [(4, 6)]),
    ],
)
def test_neighbouring_views_of_equal_size_pass_together(sides: tuple[int, ...], passes: list[Any]) -> None:
    backbone, recorder = recording()
    views = [images(side, number) for number, side in enumerate(sides)]
    linear = projector(3, None)
    found = embed_views(backbone, linear, views)
    assert recorder.passes == passes
    assert found.shape == (4, len(sides), 3)
    for number, view in enumerate(views):
        torch.testing.assert_close(found[:, number], linear(view.mean((2, 3))))


def test_batch_normalisation_of_the_projector_sees_all_views_together() -> None:
    backbone, _ = recording()
    head, twin = projector(3), projector(3)
    views = [images(8, 0), images(8, 1) + 2.0, images(6, 2) - 3.0]
    found = embed_views(backbone, head, views)
    together = twin(torch.cat([view.mean((2, 3)) for view in views]))
    torch.testing.assert_close(found.transpose(0, 1).flatten(0, 1), together)
    assert int(head.layers[1].num_batches_tracked) == 1


def test_a_projected_backbone_shares_both_modules() -> None:
    backbone, _ = recording()
    head = projector(3)
    both = ProjectedBackbone(backbone, head).eval()
    assert both.num_features == 3
    assert torch.equal(both(images(8, 0)), head(backbone(images(8, 0))))
    assert {id(parameter) for parameter in both.parameters()} == {id(parameter) for parameter in head.parameters()}
    assert not head.training
