"""SwAV against values worked out by hand: codes and predictions, the queue, and the prototypes."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dcdist.methods.swav import Outputs, Swav
from tests.methods.small_methods import NUM_SAMPLES, microbatch, small_method
from tests.methods.training import optimizer_of, steps

_EPSILON = 0.5


def swav(**changes: Any) -> Swav:
    method = small_method("swav", swav={"epsilon": _EPSILON, "temperature": _EPSILON / 2, **changes})
    assert isinstance(method, Swav)
    return method


def outputs_of(exponentials: list[list[list[float]]]) -> Outputs:
    """Of each view exp(scores / epsilon) [B, K]."""
    scores = torch.tensor(exponentials).log().transpose(0, 1) * _EPSILON
    return Outputs(torch.zeros(len(scores), 2, 6), scores)


# Two samples, two prototypes, three views. Codes of the first view: columns, then rows scaled to sum to 1, three times:
#   [[1, 4], [1, 1]] -> [[5/13, 8/13], [5/7, 2/7]] -> [[41/121, 80/121], [41/61, 20/61]]
#   -> [[365/1093, 728/1093], [365/547, 182/547]]
# Those of the second view, which has the first one's columns exchanged, are the same exchanged.
SCORES = [[[1.0, 4.0], [1.0, 1.0]], [[4.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 1.0]]]
FIRST_CODES = np.array([[365 / 1093, 728 / 1093], [365 / 547, 182 / 547]])
SECOND_CODES = FIRST_CODES[:, ::-1]
# At half of epsilon as temperature, predictions are in the ratio of the squares of these numbers.
FIRST, SECOND, THIRD = (
    np.array(rows)
    for rows in ([[1 / 17, 16 / 17], [0.5, 0.5]], [[16 / 17, 1 / 17], [0.5, 0.5]], [[0.2, 0.8], [0.9, 0.1]])
)


def test_loss_of_two_samples_two_prototypes_and_three_views_by_hand() -> None:
    (loss,) = swav().losses(outputs_of(SCORES)).values()
    pairs = [(FIRST_CODES, SECOND), (FIRST_CODES, THIRD), (SECOND_CODES, FIRST), (SECOND_CODES, THIRD)]
    by_hand = np.mean([-(codes * np.log(predictions)).sum(1) for codes, predictions in pairs])
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


def test_the_number_of_iterations_and_epsilon_are_those_of_the_codes() -> None:
    method = swav(sinkhorn_iterations=1)
    codes = method._codes(outputs_of(SCORES).scores[:, 0], 0)
    np.testing.assert_allclose(codes.numpy(), [[5 / 13, 8 / 13], [5 / 7, 2 / 7]], rtol=1e-5)


def test_gradient_is_that_of_the_predictions_alone_codes_are_constants() -> None:
    # The gradient of -sum q log softmax(s / T) is (p - q) / T; a mean over 4 pairs of views and 2 samples.
    scores = outputs_of(SCORES).scores.requires_grad_()
    (loss,) = swav().losses(Outputs(torch.zeros(2, 2, 6), scores)).values()
    loss.backward()
    by_hand = [FIRST - SECOND_CODES, SECOND - FIRST_CODES, 2 * THIRD - FIRST_CODES - SECOND_CODES]
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.transpose(0, 1), np.array(by_hand) / (_EPSILON / 2) / 8, rtol=1e-4)


def test_scores_are_cosines_of_each_view_with_the_prototypes() -> None:
    method = swav().eval()
    batch = microbatch("swav", 0)
    outputs = method(batch)
    assert (outputs.embeddings.shape, outputs.scores.shape) == ((8, 2, 6), (8, 3, 7))
    assert not outputs.embeddings.requires_grad
    for view, images in enumerate(batch["images"].views):
        embeddings = method.projector(method.backbone(images))
        cosines = torch.cosine_similarity(embeddings.unsqueeze(1), method.prototypes.weight, dim=2)
        torch.testing.assert_close(outputs.scores[:, view], cosines)
        if view < 2:
            torch.testing.assert_close(outputs.embeddings[:, view], embeddings.detach())


def test_scores_are_computed_in_fp32_also_under_autocast() -> None:
    # In bf16 cosines near 1 lie 0.004 apart, which Sinkhorn divides by an epsilon of 0.03.
    method = swav().eval()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = method(microbatch("swav", 0))
    weights = method.prototypes.weight
    expected = functional.linear(outputs.embeddings.float(), weights)
    torch.testing.assert_close(outputs.scores[:, :2], expected, rtol=0, atol=1e-6)
    assert not torch.equal(expected, expected.bfloat16().float())


def test_usage_is_the_entropy_of_the_mean_prediction_over_log_k() -> None:
    # The first view's predictions are (1/17, 16/17) and (1/2, 1/2), their mean (19/68, 49/68).
    figures = swav().figures(outputs_of(SCORES))
    by_hand = -(19 / 68 * math.log(19 / 68) + 49 / 68 * math.log(49 / 68)) / math.log(2)
    assert {name: float(value) for name, value in figures.items()} == pytest.approx({"usage_entropy_ratio": by_hand})


def with_queue(**changes: Any) -> Swav:
    """A queue of 3, filled from the first step on, beside prototypes of 2 dimensions."""
    return swav(num_prototypes=2, dimensions=2, queue_length=3, queue_from_epoch=0, **changes)


def embeddings(*angles: float) -> torch.Tensor:
    """[B, 2, 2] unit vectors; the second view's angle is 1 larger."""
    both = torch.tensor([[angle, angle + 1] for angle in angles])
    return torch.stack([both.cos(), both.sin()], dim=2)


def test_the_queue_holds_the_newest_embeddings_of_each_view_oldest_first() -> None:
    method = with_queue()
    method.after_step(embeddings(0.1, 0.2))
    assert method.num_queued == 2
    method.after_step(embeddings(0.3, 0.4))
    assert method.num_queued == 3
    torch.testing.assert_close(method.queue, embeddings(0.2, 0.3, 0.4).transpose(0, 1))
    method.after_step(embeddings(0.5, 0.6, 0.7, 0.8))
    assert method.num_queued == 3
    torch.testing.assert_close(method.queue, embeddings(0.6, 0.7, 0.8).transpose(0, 1))


def balanced(scores: np.ndarray) -> np.ndarray:
    """Sinkhorn's iteration as its paper writes it."""
    matrix = np.exp(scores.astype(np.float64) / _EPSILON)
    for _ in range(3):
        matrix /= matrix.sum(0, keepdims=True) * matrix.shape[1]
        matrix /= matrix.sum(1, keepdims=True) * matrix.shape[0]
    return matrix * len(matrix)


def test_the_queue_takes_part_in_the_codes_once_it_is_full_and_not_before() -> None:
    method = with_queue()
    scores = outputs_of(SCORES).scores[:, 0]
    for number, is_full in enumerate([False, False, True]):
        for view in range(2):
            used = scores.numpy()
            if is_full:
                queued = embeddings(2.0, 3.0, 4.0)[:, view].numpy() @ method.prototypes.weight.detach().numpy().T
                used = np.concatenate([queued, used])
            np.testing.assert_allclose(method._codes(scores, view), balanced(used)[-2:], rtol=1e-5)
        method.after_step(embeddings(*([1.0, 2.0] if number == 0 else [3.0, 4.0])))


def test_the_queue_is_filled_from_its_epoch_on() -> None:
    method = small_method("swav", swav={"queue_length": 8, "queue_from_epoch": 2})
    assert isinstance(method, Swav)
    assert method.queue_from_step == 2 * math.ceil(NUM_SAMPLES / 32)
    for number in range(6):
        assert method.num_queued == max(0, number - 4)
        method.after_step(torch.ones(1, 2, 6))


def test_queue_and_counts_survive_a_checkpoint() -> None:
    method = with_queue()
    for angles in ([1.0, 2.0], [3.0, 4.0]):
        method.after_step(embeddings(*angles))
    other = with_queue()
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert (other.num_steps, other.num_queued) == (2, 3)
    assert torch.equal(other.queue, method.queue)
    assert other.losses(outputs_of(SCORES)) == method.losses(outputs_of(SCORES))


def test_without_a_queue_nothing_is_kept() -> None:
    method = swav(queue_length=0)
    method.after_step(torch.ones(4, 2, 6))
    assert method.queue.numel() == 0
    assert method.num_queued == 0


@pytest.mark.parametrize("kind", ["sgd", "larc", "adamw"])
def test_prototypes_have_length_one_and_do_not_move_while_they_are_frozen(kind: str) -> None:
    method = swav(frozen_prototype_steps=2, temperature=0.1)
    optimizer = optimizer_of(method, kind)
    initial, backbone = method.prototypes.weight.detach().clone(), method.backbone.body[0][0].weight.detach().clone()
    torch.testing.assert_close(initial.norm(dim=1), torch.ones(7))
    for number, _ in enumerate(steps(method, "swav", 4, optimizer)):
        frozen = number < 2
        assert torch.equal(method.prototypes.weight, initial) == frozen
        assert ("prototypes.weight" in optimizer.state_dict()) != frozen, "no momentum gathers meanwhile"
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(7))
        assert not torch.equal(method.backbone.body[0][0].weight, backbone)


def test_an_epoch_passes_over_the_usable_images_in_an_order_of_its_own_without_targets() -> None:
    method = swav()
    usable = np.array([index for index in range(NUM_SAMPLES) if index not in (3, 17)])
    plans = [method.plan_epoch(epoch, usable, None) for epoch in (0, 0, 1)]
    first, again, other = (plan.streams["images"] for plan in plans)
    assert plans[0].num_steps == 2
    assert len(first.sample_ids) == 64
    assert sorted(first.sample_ids[:38]) == usable.tolist()
    assert set(first.sample_ids) == set(usable.tolist())
    assert first.targets is None
    assert [view.size for view in first.views] == [16, 16, 8]
    np.testing.assert_array_equal(first.sample_ids, again.sample_ids)
    assert (first.sample_ids != other.sample_ids).mean() > 0.5


def test_a_network_that_says_nothing_has_the_loss_of_chance() -> None:
    method = swav()
    (loss,) = method.losses(Outputs(torch.zeros(4, 2, 6), torch.zeros(4, 3, 7))).values()
    assert method.chance_losses() == pytest.approx({"codes": float(loss)})
