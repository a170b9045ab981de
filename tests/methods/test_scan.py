"""SCAN's two terms by hand, the pairs that it trains on, and the head that becomes the classifier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dcdist.clustering.consistency import scan_terms
from dcdist.clustering.types import Clustering
from dcdist.methods.scan import Outputs, Scan
from dcdist.models.heads import Classifier
from tests.methods.small_methods import NUM_SAMPLES, microbatch, small_method
from tests.methods.training import steps


def scan(**changes: Any) -> Scan:
    method = small_method("scan", scan=changes)
    assert isinstance(method, Scan)
    return method


def logits(*heads: list[list[float]]) -> torch.Tensor:
    """Of the probabilities [B, C] of each head: [B, H, C]; a constant is added, which changes nothing."""
    return torch.stack([torch.tensor(head) for head in heads], dim=1).log() + 3.0


# <p, q> of the two samples: 3/4 2/3 + 1/4 1/3 = 7/12 and 1/2 1/4 + 1/2 3/4 = 1/2. The mean of p is (5/8, 3/8).
ANCHORS, NEIGHBORS = [[3 / 4, 1 / 4], [1 / 2, 1 / 2]], [[2 / 3, 1 / 3], [1 / 4, 3 / 4]]
CONSISTENCY = -(math.log(7 / 12) + math.log(1 / 2)) / 2
ENTROPY = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(3 / 8))
# Of another head: 9/10 9/10 + 1/10 1/10 = 41/50 twice. The mean of p is (1/2, 1/2).
SURE = [[9 / 10, 1 / 10], [1 / 10, 9 / 10]]


def test_loss_of_two_samples_and_two_classes_by_hand() -> None:
    losses = scan(num_heads=1).losses(Outputs(logits(ANCHORS), logits(NEIGHBORS)))
    by_hand = {"consistency": CONSISTENCY, "entropy": -5.0 * ENTROPY}  # 5 is the published weight
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(by_hand, rel=1e-5)


def test_losses_of_several_heads_are_summed() -> None:
    outputs = Outputs(logits(ANCHORS, SURE), logits(NEIGHBORS, SURE))
    losses = scan(num_heads=2, entropy_weight=2.0).losses(outputs)
    by_hand = {
        "consistency": CONSISTENCY - math.log(41 / 50),
        "entropy": -2.0 * (ENTROPY + math.log(2)),
    }
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(by_hand, rel=1e-5)


def test_terms_agree_with_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, neighbors = (3 * torch.randn(9, 2, 5, generator=generator) for _ in range(2))
    p, q = anchors.double().softmax(2), neighbors.double().softmax(2)
    consistency, entropy = scan_terms(anchors, neighbors)
    mean = p.mean(0)
    torch.testing.assert_close(consistency.double(), -(p * q).sum(2).log().mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(entropy.double(), -(mean * mean.log()).sum(1), rtol=1e-5, atol=0)


def test_surely_different_classes_cost_much_and_nothing_is_infinite() -> None:
    anchors = torch.tensor([[[200.0, 0.0]]]).requires_grad_()
    consistency, entropy = scan_terms(anchors, torch.tensor([[[0.0, 200.0]]]))
    (consistency - entropy).sum().backward()
    assert float(consistency.detach()) == pytest.approx(200 - math.log(2))
    assert anchors.grad is not None
    assert bool(anchors.grad.isfinite().all())


@pytest.mark.parametrize("initial", ["random", "readout"])
def test_heads_begin_at_the_classifier_of_the_stage_before_where_the_config_says_so(initial: str) -> None:
    method, untouched = scan(initial=initial), scan()
    classifier = Classifier(torch.arange(4.0 * 16).view(4, 16), torch.arange(4.0), relu_first=False)
    method.begin(classifier)
    for head in range(3):
        expected = classifier if initial == "readout" else untouched.heads.classifier(head)
        assert torch.equal(method.heads.classifier(head).weight, expected.weight)
        assert torch.equal(method.heads.classifier(head).bias, expected.bias)


def test_logits_are_those_of_each_head_on_the_features_of_anchors_and_neighbours() -> None:
    method = scan().eval()
    batch = microbatch("scan", 0)
    outputs = method(batch)
    for found, stream in zip(outputs, ("anchors", "neighbors"), strict=True):
        (images,) = batch[stream].views
        torch.testing.assert_close(found, method.heads(method.backbone(images)))
        assert found.shape == (8, 3, 4)


def neighbor_clustering(num_neighbors: int = 3) -> Clustering:
    """The neighbours of i are i + 1, i + 2, ...; 5 and 6 have no features, nor are they anyone's neighbour."""
    with_features = np.array([index for index in range(NUM_SAMPLES) if index not in (5, 6)])
    table = np.full((NUM_SAMPLES, num_neighbors), -1)
    for offset in range(num_neighbors):
        table[with_features, offset] = np.roll(with_features, -offset - 1)
    return Clustering((), torch.from_numpy(table))


def test_every_anchor_is_paired_with_itself_or_a_neighbour_each_as_often() -> None:
    method = small_method("scan", train={"steps_per_epoch": 100})
    found = neighbor_clustering()
    assert found.neighbors is not None
    usable = np.flatnonzero(found.neighbors[:, 0].numpy() >= 0)
    plan = method.plan_epoch(0, usable, found)
    anchors, partners = plan.streams["anchors"].sample_ids, plan.streams["neighbors"].sample_ids
    assert plan.num_steps == 100
    assert len(anchors) == len(partners) == 3200
    assert set(anchors) == set(partners) == set(usable)
    candidates = np.concatenate([anchors[:, None], found.neighbors.numpy()[anchors]], axis=1)
    is_partner = candidates == partners[:, None]
    assert (is_partner.sum(1) == 1).all()
    shares = is_partner.mean(0)
    assert (np.abs(shares - 1 / 4) < 0.04).all(), shares  # 5 standard deviations of 3200 draws


def test_pairs_are_a_function_of_the_epoch() -> None:
    method, found = scan(), neighbor_clustering()
    usable = np.flatnonzero(found.neighbors[:, 0].numpy() >= 0)  # type: ignore[index]
    first, again, other = (
        [stream.sample_ids for stream in method.plan_epoch(epoch, usable, found).streams.values()]
        for epoch in (2, 2, 3)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).mean() > 0.5


def test_adopting_neighbours_starts_nothing_anew() -> None:
    method = scan()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert method.adopt(neighbor_clustering(), torch.Generator()) == []
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_the_classifier_is_the_head_of_the_lowest_loss_with_an_entropy_weight_of_one() -> None:
    method = scan(num_heads=3, num_clusters=2)
    spread = [[1 / 2, 1 / 2], [1 / 2, 1 / 2]]  # log 2 - log 2 = 0
    alike = [[99 / 100, 1 / 100], [99 / 100, 1 / 100]]  # the most consistent, and without entropy: about -0.04
    kept = method.keep(Outputs(logits(alike, SURE, spread), logits(alike, SURE, spread)))
    same = (99**2 + 1) / 100**2
    entropy = -(0.99 * math.log(0.99) + 0.01 * math.log(0.01))
    by_hand = [-math.log(same) - entropy, -math.log(41 / 50) - math.log(2), 0.0]
    torch.testing.assert_close(kept, torch.tensor(by_hand), rtol=1e-5, atol=1e-6)
    for _ in range(3):
        method.after_step(kept)
    chosen = method.classifier()
    assert torch.equal(chosen.weight, method.heads.linear.weight[2:4])
    assert torch.equal(chosen.bias, method.heads.linear.bias[2:4])


def test_a_head_that_has_become_better_takes_over() -> None:
    method = scan(num_heads=2, num_clusters=2)
    for _ in range(100):
        method.after_step(torch.tensor([-0.5, -0.1]))
    assert torch.equal(method.classifier().weight, method.heads.linear.weight[:2])
    for _ in range(200):
        method.after_step(torch.tensor([-0.1, -0.5]))
    assert torch.equal(method.classifier().weight, method.heads.linear.weight[2:])
    # A running mean with a decay of 0.99, from 0.
    by_hand = -0.5 * (1 - 0.99**100) * 0.99**200 - 0.1 * (1 - 0.99**200)
    assert float(method.selection_losses[0]) == pytest.approx(by_hand, rel=1e-4)


def test_usage_is_the_mean_of_the_heads_own_entropies() -> None:
    # Two heads that each use one class alone have collapsed, although together they use both.
    sure, other = [[1 - 1e-7, 1e-7]] * 2, [[1e-7, 1 - 1e-7]] * 2
    method = scan(num_heads=2)
    figures = method.figures(Outputs(logits(sure, other), logits(sure, other)))
    assert float(figures["usage_entropy_ratio"]) == pytest.approx(0.0, abs=1e-4)
    figures = method.figures(Outputs(logits(ANCHORS, SURE), logits(NEIGHBORS, SURE)))
    assert float(figures["usage_entropy_ratio"]) == pytest.approx((ENTROPY / math.log(2) + 1) / 2, rel=1e-5)


def test_a_network_that_says_nothing_has_the_consistency_of_chance() -> None:
    method = scan()
    losses = method.losses(Outputs(torch.zeros(8, 3, 4), torch.zeros(8, 3, 4)))
    assert method.chance_losses() == pytest.approx({"consistency": float(losses["consistency"])})


def test_without_the_backbone_its_weights_and_running_statistics_stay() -> None:
    method = scan(train_backbone=False)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    list(steps(method, "scan", 2))
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"heads.linear.weight", "heads.linear.bias", "selection_losses"}


def test_with_the_backbone_everything_learns() -> None:
    method = scan()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    list(steps(method, "scan", 1))
    assert [name for name, value in method.state_dict().items() if torch.equal(value, before[name])] == []
