"""Heads: one over clusters, reset in place; several side by side; centroids instead of weights; one taken out."""

from __future__ import annotations

import copy

import pytest
import torch

from dcdist.models.heads import Classifier, ClusterHead, LinearHeads, Prototypes


@pytest.fixture
def head() -> ClusterHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClusterHead(num_features=64, capacity=200, relu_first=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_reset_is_the_published_initialisation_in_place(head: ClusterHead) -> None:
    weight, bias = head.linear.weight, head.linear.bias
    head.reset(200, generator())
    assert head.linear.weight is weight
    assert head.linear.bias is bias
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=5 / (2 * weight.numel()) ** 0.5)
    assert float(weight.detach().mean()) == pytest.approx(0.0, abs=0.01 * 5 / weight.numel() ** 0.5)
    assert not bias.any()


def test_reset_depends_on_its_generator_alone(head: ClusterHead) -> None:
    other = copy.deepcopy(head)
    before = torch.random.get_rng_state()
    head.reset(200, generator(3))
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is not touched"
    other.reset(200, generator(3))
    assert torch.equal(head.linear.weight, other.linear.weight)
    other.reset(200, generator(4))
    assert not torch.equal(head.linear.weight, other.linear.weight)


def test_logits_by_hand() -> None:
    with torch.random.fork_rng():
        head = ClusterHead(num_features=2, capacity=3, relu_first=True)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]))
        head.linear.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    features = torch.tensor([[1.0, -1.0], [-1.0, 0.1]])
    assert head(features).tolist() == [[1.5, 2.0, 3.0], [1.5, 2.0, 3.0]]
    head.relu_first = False
    assert head(features).tolist()[0] == [-8.5, -18.0, -27.0]


def test_unused_logits_are_left_out_and_get_no_gradient(head: ClusterHead) -> None:
    head.reset(7, generator())
    logits = head(torch.randn(5, 64, generator=generator()))
    assert logits.shape == (5, 7)
    logits.square().sum().backward()
    gradient = head.linear.weight.grad
    assert gradient is not None
    assert bool(gradient[:7].any(1).all())
    assert not gradient[7:].any()


def test_how_many_logits_are_used_is_part_of_the_state(head: ClusterHead) -> None:
    head.reset(7, generator())
    state = head.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    with torch.random.fork_rng():
        other = ClusterHead(num_features=64, capacity=200, relu_first=False)
    other.load_state_dict(copy.deepcopy(state))
    features = torch.randn(5, 64, generator=generator())
    assert torch.equal(other(features), head(features))


@pytest.mark.parametrize("num_clusters", [0, 201])
def test_more_clusters_than_logits_are_refused(head: ClusterHead, num_clusters: int) -> None:
    with pytest.raises(ValueError, match=f"{num_clusters} clusters do not fit the head's 200 logits"):
        head.reset(num_clusters, generator())


def test_a_classifier_by_hand() -> None:
    weight, bias = torch.tensor([[1.0, 10.0], [2.0, 20.0]]), torch.tensor([0.5, 0.0])
    features = torch.tensor([[1.0, -1.0]])
    assert Classifier(weight, bias, relu_first=True).logits(features).tolist() == [[1.5, 2.0]]
    logits = Classifier(weight, bias, relu_first=False).logits(features.half())
    assert logits.tolist() == [[-8.5, -18.0]]
    assert logits.dtype == torch.float32


def linear_heads(num_heads: int, relu_first: bool = False) -> LinearHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LinearHeads(num_features=6, num_classes=4, num_heads=num_heads, relu_first=relu_first)


@pytest.mark.parametrize("relu_first", [False, True])
def test_a_head_taken_out_says_what_it_said_among_the_others(relu_first: bool) -> None:
    heads = linear_heads(3, relu_first)
    features = torch.randn(5, 6, generator=generator())
    logits = heads(features)
    assert logits.shape == (5, 3, 4)
    for number in range(3):
        torch.testing.assert_close(heads.classifier(number).logits(features), logits[:, number].detach())


def test_what_is_taken_out_is_a_copy() -> None:
    heads = linear_heads(2)
    classifier = heads.classifier(1)
    before = classifier.weight.clone()
    with torch.no_grad():
        heads.linear.weight.zero_()
    assert torch.equal(classifier.weight, before)
    assert not classifier.weight.requires_grad


def test_every_head_becomes_the_classifier_that_is_set() -> None:
    heads, other = linear_heads(3), linear_heads(2)
    weight = heads.linear.weight
    heads.set(other.classifier(1))
    assert heads.linear.weight is weight
    features = torch.randn(5, 6, generator=generator())
    for logits in heads(features).unbind(1):
        torch.testing.assert_close(logits, other(features)[:, 1])


def test_cosines_with_centroids_of_any_length_by_hand() -> None:
    prototypes = Prototypes(capacity=4, dimensions=2)
    prototypes.set(torch.tensor([[3.0, 4.0], [0.0, 0.5], [-2.0, 0.0]]))
    cosines = prototypes(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    torch.testing.assert_close(cosines, torch.tensor([[[0.6, 0.0, -1.0]], [[0.8, 1.0, 0.0]]]))
    assert list(prototypes.parameters()) == [], "prototypes do not learn"


def test_fewer_centroids_leave_nothing_of_those_before_and_the_number_is_state() -> None:
    prototypes = Prototypes(capacity=3, dimensions=2)
    prototypes.set(torch.ones(3, 2))
    prototypes.set(torch.tensor([[2.0, 0.0]]))
    assert prototypes.weight.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    other = Prototypes(capacity=3, dimensions=2)
    other.load_state_dict(copy.deepcopy(prototypes.state_dict()))
    assert other(torch.tensor([[0.5, 0.5]])).tolist() == [[0.5]]


def test_cosines_are_in_full_precision_under_autocast() -> None:
    prototypes = Prototypes(capacity=2, dimensions=2)
    prototypes.set(torch.tensor([[1.0, 3.0], [1.0, 0.0]]))
    embeddings = torch.tensor([[0.1, 0.99]])
    with torch.autocast("cpu", torch.bfloat16):
        cosines = prototypes(embeddings)
    assert cosines.dtype == torch.float32
    assert torch.equal(cosines, prototypes(embeddings))
