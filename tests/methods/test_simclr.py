"""SimCLR's contrastive loss by hand and against a slow double loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dcdist.methods.simclr import Outputs, Simclr
from tests.methods.small_methods import NUM_SAMPLES, microbatch, small_method


def simclr(temperature: float = 0.1) -> Simclr:
    method = small_method("simclr", simclr={"temperature": temperature})
    assert isinstance(method, Simclr)
    return method


def loss_of(embeddings: torch.Tensor, temperature: float) -> float:
    (loss,) = simclr(temperature).losses(Outputs(embeddings)).values()
    return float(loss)


def random_embeddings() -> torch.Tensor:
    """[5, 2, 6], rows of length 1."""
    rows = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=2)


def test_loss_of_two_images_by_hand() -> None:
    # At the temperature 1 / ln 2 a cosine c counts 2^c. Views of the first image: (1, 0) twice; each finds the other
    # (2) among two that count 1: 2/4. Of the second: (0, 1) and (0, -1), which count 1/2 among two of 1: 1/5.
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    assert loss_of(embeddings, 1 / math.log(2)) == pytest.approx((math.log(2) + math.log(5)) / 2, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_loss_agrees_with_a_loop_over_all_pairs(temperature: float) -> None:
    rows = random_embeddings().double().numpy()
    views = [(image, view) for image in range(5) for view in range(2)]
    terms = []
    for image, view in views:
        partner = rows[image, 1 - view]
        others = [rows[other] for other in views if other != (image, view)]
        total = sum(math.exp(rows[image, view] @ other / temperature) for other in others)
        terms.append(-math.log(math.exp(rows[image, view] @ partner / temperature) / total))
    assert loss_of(random_embeddings(), temperature) == pytest.approx(np.mean(terms), rel=1e-5)


def test_loss_depends_neither_on_which_view_is_first_nor_on_the_order_of_images() -> None:
    embeddings = random_embeddings()
    loss = loss_of(embeddings, 0.2)
    assert loss_of(embeddings.flip(1), 0.2) == pytest.approx(loss, rel=1e-6)
    assert loss_of(embeddings.flip(0), 0.2) == pytest.approx(loss, rel=1e-6)
    exchanged = embeddings.clone()
    exchanged[0] = exchanged[0].flip(0)  # of one image alone
    assert loss_of(exchanged, 0.2) == pytest.approx(loss, rel=1e-6)


def test_gradient_is_finite_and_of_both_views() -> None:
    embeddings = random_embeddings().requires_grad_()
    (loss,) = simclr().losses(Outputs(embeddings)).values()
    loss.backward()
    assert embeddings.grad is not None
    assert bool(embeddings.grad.isfinite().all())
    assert bool(embeddings.grad.any(2).all())


def test_embeddings_are_those_of_each_view() -> None:
    method = simclr().eval()
    batch = microbatch("simclr", 0)
    (embeddings,) = method(batch)
    assert embeddings.shape == (8, 2, 6)
    for view, images in enumerate(batch["images"].views):
        torch.testing.assert_close(embeddings[:, view], method.projector(method.backbone(images)))


def test_embeddings_that_are_all_alike_have_the_loss_of_chance() -> None:
    method = simclr()
    (loss,) = method.losses(Outputs(torch.ones(32, 2, 1))).values()
    assert method.chance_losses() == pytest.approx({"contrast": float(loss)})
    assert method.couples_samples


def test_an_epoch_passes_over_the_usable_images_with_two_views() -> None:
    plan = simclr().plan_epoch(0, np.arange(1, NUM_SAMPLES), None)
    (stream,) = plan.streams.values()
    assert (plan.num_steps, len(stream.sample_ids), len(stream.views)) == (2, 64, 2)
    assert sorted(stream.sample_ids[: NUM_SAMPLES - 1]) == list(range(1, NUM_SAMPLES))
    assert stream.targets is None
