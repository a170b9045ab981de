"""What counts as the beginning of a collapse."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dcdist.engine.collapse import CollapseWatch
from dcdist.engine.state_files import flatten, unflatten


def watch() -> CollapseWatch:
    return CollapseWatch(lambda: {"clusters": math.log(100)}, "patience")


def sizes(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def test_even_clusters_and_two_or_three_uneven_ones_are_no_collapse() -> None:
    assert watch().clustering(0, sizes(*[10] * 20), 20) is None
    assert watch().clustering(0, sizes(80, 20), 2) is None


@pytest.mark.parametrize(
    ("counts", "symptom"),
    [
        ((60, 8, 8, 8, 8, 8), "one of the 6 clusters of head 0 holds 60% of the images"),
        ((97, 1, 1, 1), "size entropy is 0.12 of log K"),
        ((96, 4), "size entropy is 0.24 of log K"),
    ],
)
def test_uneven_clusters_are_a_collapse(counts: tuple[int, ...], symptom: str) -> None:
    message = watch().clustering(0, sizes(*counts), len(counts))
    assert message is not None
    assert symptom in message
    assert message.endswith("patience")


def test_sizes_that_become_uneven_are_a_collapse_of_their_head() -> None:
    both = watch()
    fallen = sizes(45, 45, 2, 2, 2, 2, 1, 1)  # 1.12 nats of log 8 = 2.08
    assert both.clustering(0, sizes(*[10] * 8), 8) is None
    assert both.clustering(1, fallen, 8) is None, "it began like this"
    message = both.clustering(0, fallen, 8)
    assert message is not None
    assert "size entropy is 0.54 of log K, at first it was 1.00" in message


def test_what_it_remembers_survives_a_checkpoint() -> None:
    at_chance, fallen = {"clusters": math.log(100)}, sizes(45, 45, 2, 2, 2, 2, 1, 1)
    one, other = watch(), watch()
    assert one.clustering(1, sizes(*[10] * 8), 8) is None
    assert one.epoch(at_chance, {}, 150) is None
    flat = flatten(one.state_dict())
    other.load_state_dict(unflatten(json.loads(json.dumps(flat.tree)), flat.tensors, ()))
    assert other.state_dict() == one.state_dict()
    assert "at first it was 1.00" in str(other.clustering(1, fallen, 8))
    assert "for 2 epochs" in str(other.epoch(at_chance, {}, 50))


def test_a_loss_at_log_k_is_a_collapse_in_the_second_epoch_in_a_row() -> None:
    one = watch()
    at_chance = {"clusters": 0.995 * math.log(100), "other": 1.0}
    assert one.epoch(at_chance, {}, 100) is None
    assert one.epoch({"clusters": 4.0}, {}, 100) is None
    assert one.epoch(at_chance, {}, 100) is None
    message = one.epoch(at_chance, {}, 100)
    assert message is not None
    assert "'clusters' has stayed at 4.582, what a network that says nothing gets (4.605), for 2 epochs" in message


def test_a_loss_above_log_k_is_a_beginner_and_no_collapse() -> None:
    one = watch()
    assert [one.epoch({"clusters": 6.0}, {}, 500) for _ in range(3)] == [None] * 3


def test_few_used_prototypes_are_a_collapse() -> None:
    assert watch().epoch({"clusters": 3.0}, {"swav/usage_entropy_ratio": 0.9}, 9) is None
    message = watch().epoch({"clusters": 3.0}, {"swav/usage_entropy_ratio": 0.3}, 9)
    assert message is not None
    assert "entropy of the mean assignment is 0.30 of log K" in message


def test_steps_without_a_loss_are_no_collapse() -> None:
    one = watch()
    assert [one.epoch({}, {}, 100) for _ in range(3)] == [None] * 3


def test_a_loss_at_log_k_after_a_few_steps_is_a_beginner() -> None:
    one = watch()
    at_chance = {"clusters": math.log(100)}
    assert [one.epoch(at_chance, {}, 30) is None for _ in range(7)] == [True] * 6 + [False]


def test_one_cluster_alone_is_a_collapse_though_nothing_is_unequal() -> None:
    found = watch()
    assert found.clustering(0, sizes(*[10] * 20), 20) is None
    message = found.clustering(0, sizes(200), 1)
    assert message is not None
    assert "all images are in the one cluster" in message


def test_an_epoch_in_which_no_image_was_sure_is_said() -> None:
    found = watch()
    assert found.epoch({"labels": 0.4}, {"skipped_ratio": 0.98}, 10) is None
    message = found.epoch({}, {"part/skipped_ratio": 1.0}, 10)
    assert message is not None
    assert "sure enough to learn from" in message


def test_an_epoch_of_another_symptom_counts_as_one_at_chance_too() -> None:
    found = watch()
    at_chance = {"clusters": math.log(100)}
    assert "few clusters are used" in str(found.epoch(at_chance, {"usage_entropy_ratio": 0.1}, 120))
    assert "for 2 epochs" in str(found.epoch(at_chance, {}, 120))
