"""DeepCluster-v2 by hand: its loss, the centroids that take the place of weights, and the bank that is clustered."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dcdist.clustering.types import Clustering, HeadClustering
from dcdist.engine.state import AdoptedClustering
from dcdist.engine.trainer import Trainer
from dcdist.features import RawFeatures
from dcdist.methods.deepcluster_v2 import DeepClusterV2, Outputs
from tests.methods.small_methods import NUM_SAMPLES, clustering, microbatch, small_method
from tests.methods.training import steps


def deepcluster_v2(own: range = range(NUM_SAMPLES), **changes: Any) -> DeepClusterV2:
    method = small_method("deepcluster_v2", own, **changes)
    assert isinstance(method, DeepClusterV2)
    return method


def head(centroids: list[list[float]], assignments: list[int]) -> HeadClustering:
    ids = torch.tensor(assignments, dtype=torch.int32)
    return HeadClustering(ids, torch.zeros(len(ids)), torch.tensor(centroids), 0.0, 1, 0, "rank0")


def test_loss_of_two_heads_and_three_views_by_hand() -> None:
    # Probabilities are in the ratio of these numbers; the first head's targets are 0 and 1, the second's 2 and 0.
    first = [[[1.0, 1.0], [1.0, 3.0], [3.0, 1.0]], [[1.0, 1.0], [1.0, 3.0], [1.0, 4.0]]]
    second = [[[1.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0]], [[3.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 2.0]]]
    logits = (torch.tensor(first).log(), torch.tensor(second).log())
    outputs = Outputs(torch.arange(2), torch.zeros(2, 2, 6), logits, torch.tensor([[0, 2], [1, 0]]))
    of_first, of_second = [1 / 2, 1 / 4, 3 / 4, 1 / 2, 3 / 4, 4 / 5], [1 / 2, 1 / 3, 1 / 4, 3 / 5, 1 / 6, 1 / 4]
    by_hand = -(np.log(of_first).mean() + np.log(of_second).mean()) / 2
    (loss,) = deepcluster_v2().losses(outputs).values()
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)


def test_logits_are_cosines_of_every_view_with_the_centroids_over_the_temperature() -> None:
    method = deepcluster_v2(deepcluster_v2={"temperature": 0.2}).eval()
    batch = microbatch("deepcluster_v2", 0)
    outputs = method(batch)
    assert [logits.shape for logits in outputs.logits] == [(8, 3, 5), (8, 3, 3)]
    for view, images in enumerate(batch["clusters"].views):
        embeddings = method.projector(method.backbone(images))
        for logits, found in zip(outputs.logits, clustering((5, 3), 6).heads, strict=True):
            cosines = torch.cosine_similarity(embeddings.unsqueeze(1), found.centroids, dim=2)
            torch.testing.assert_close(logits[:, view], cosines / 0.2)
        if view < 2:
            torch.testing.assert_close(outputs.embeddings[:, view], embeddings.detach())
    assert outputs.embeddings.shape == (8, 2, 6)
    assert not outputs.embeddings.requires_grad
    assert torch.equal(outputs.targets, batch["clusters"].targets)
    images = batch["clusters"].views[0]
    torch.testing.assert_close(method.cluster_logits(images), outputs.logits[0][:, 0])


def test_prototypes_are_the_normalised_centroids_of_as_many_clusters_as_were_found() -> None:
    method = deepcluster_v2()  # of 5 and 3 clusters, in 6 dimensions
    method.prototypes[0].weight.fill_(7.0)  # type: ignore[union-attr, operator]
    first = [[3.0, 4.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]]
    second = [[0.0, -5.0, 0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 8.0, 0.0, 6.0, 0.0]]
    found = Clustering((head(first, [0, 1]), head(second, [1, 2])))
    assert method.adopt(found, torch.Generator()) == [], "no parameter starts anew"
    weights = [prototypes.weight for prototypes in method.prototypes]
    of_first = [[0.6, 0.8, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], *[[0.0] * 6] * 3]
    of_second = [[0.0, -1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.8, 0.0, 0.6, 0.0]]
    torch.testing.assert_close(weights, [torch.tensor(of_first), torch.tensor(of_second)])
    outputs = method(microbatch("deepcluster_v2", 0))
    assert [logits.shape[2] for logits in outputs.logits] == [2, 3], "unused logits are left out"
    assert method.chance_losses() == pytest.approx({"clusters": (math.log(2) + math.log(3)) / 2})


def test_prototypes_do_not_learn() -> None:
    method = deepcluster_v2()
    before = [prototypes.weight.clone() for prototypes in method.prototypes]
    learning = {id(parameter) for group in method.parameter_groups() for parameter in group["params"]}
    assert learning == {id(p) for p in [*method.backbone.parameters(), *method.projector.parameters()]}
    list(steps(method, "deepcluster_v2", 2))
    for prototypes, weight in zip(method.prototypes, before, strict=True):
        assert torch.equal(prototypes.weight, weight)


def test_targets_of_a_plan_are_each_images_clusters_under_all_heads() -> None:
    method = deepcluster_v2()
    found = clustering((5, 3), 6)
    usable = np.array([index for index in range(NUM_SAMPLES) if index != 11])
    plan = method.plan_epoch(4, usable, found)
    (stream,) = plan.streams.values()
    assert (plan.num_steps, stream.sample_ids.shape, stream.targets.dtype) == (2, (64,), np.int64)
    assert sorted(stream.sample_ids[:39]) == usable.tolist()
    np.testing.assert_array_equal(stream.targets, np.stack([stream.sample_ids % 5, stream.sample_ids % 3], 1))
    assert [view.size for view in stream.views] == [16, 16, 8]


def test_the_bank_takes_the_embeddings_of_the_first_two_views_by_sample() -> None:
    method = deepcluster_v2()
    outputs = method(microbatch("deepcluster_v2", 0))
    method.after_step(method.keep(outputs))
    order = outputs.sample_ids.argsort()
    assert method.bank is not None
    for view, shard in enumerate(method.bank.shards()):
        assert torch.equal(shard.sample_ids, outputs.sample_ids[order])
        assert torch.equal(shard.features, outputs.embeddings[order, view])


def test_without_a_bank_nothing_is_kept() -> None:
    method = deepcluster_v2(deepcluster_v2={"bank": False})
    assert method.bank is None
    assert method.keep(method(microbatch("deepcluster_v2", 0))) is None
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.after_step(None)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_training_fills_the_bank_with_what_it_computes() -> None:
    method = deepcluster_v2()
    for _ in steps(method, "deepcluster_v2", 1):
        pass
    seen = torch.cat([microbatch("deepcluster_v2", number)["clusters"].sample_ids for number in range(2)])
    assert method.bank is not None
    for shard in method.bank.shards():
        assert torch.equal(shard.sample_ids, seen.unique())
        torch.testing.assert_close(shard.features.norm(dim=1), torch.ones(len(shard.features)))


def test_before_the_first_epoch_a_pass_over_the_images_fills_the_bank_and_never_again() -> None:
    method = deepcluster_v2(own=range(10, 14))
    raw = RawFeatures(3, 6, 10**6, torch.device("cpu"))
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).half()
    raw.append(torch.tensor([10, 11, 13]), rows)
    adopted = AdoptedClustering()
    passes = []
    trainer: Any = SimpleNamespace(
        method=method,
        adopted=adopted,
        journal=SimpleNamespace(phase=lambda name: contextlib.nullcontext()),  # noqa: ARG005
        extract_features=lambda: passes.append(1) or raw,
    )
    shards, pca = Trainer.rows_to_cluster(trainer)
    assert pca is None
    assert len(shards) == 2
    for shard in shards:
        assert shard.sample_ids.tolist() == [10, 11, 13]
        assert torch.equal(shard.features, rows.float())

    adopted.set(clustering((5, 3), 6), None)
    newer = torch.randn(2, 2, 6)
    method.after_step(method.keep(Outputs(torch.tensor([13, 12]), newer, (), torch.zeros(2, 2))))
    for view, shard in enumerate(Trainer.rows_to_cluster(trainer)[0]):
        assert shard.sample_ids.tolist() == [10, 11, 12, 13]
        assert torch.equal(shard.features, torch.stack([*rows[:2].float(), newer[1, view], newer[0, view]]))
    assert len(passes) == 1


def test_the_pass_uses_the_embedding_that_training_clusters() -> None:
    method = deepcluster_v2().eval()
    embedder = method.embedder()
    images = microbatch("deepcluster_v2", 0)["clusters"].views[0]
    assert embedder.num_features == 6
    assert torch.equal(embedder(images), method.projector(method.backbone(images)))
