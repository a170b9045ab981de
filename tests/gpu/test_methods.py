"""Every method takes a step on a GPU as it does on the CPU, and the new clusterers find the same clusters there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dcdist.clustering.gmm import GaussianMixture
from dcdist.clustering.hierarchical import HierarchicalKMeans
from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.linear_scan import LinearScan
from dcdist.clustering.pic import PowerIterationClustering
from dcdist.clustering.types import FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.engine.optim import Optimizer, Schedule
from dcdist.engine.training_step import TrainingStep
from dcdist.models.numerics import Numerics
from tests.gpu.test_cuda import CPU, CUDA, mixture
from tests.methods.small_methods import STREAMS, microbatch, small_method

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses_of(name: str, device: torch.device) -> list[dict[str, float]]:
    method = small_method(name, device=device)
    numerics = Numerics(device, bfloat16=False, channels_last=False)
    numerics.place(method)
    optimizer = Optimizer(
        method.parameter_groups(),
        {parameter: key for key, parameter in method.named_parameters()},
        "sgd",
        momentum=0.0,
        weight_decay=0.0,
        schedule=Schedule(0.05, "constant", 0, 3),
    )
    training_step = TrainingStep(method, optimizer, numerics, Collectives(), 2)
    found = []
    for step in range(3):
        microbatches = [
            {stream: batch.to(device) for stream, batch in microbatch(name, 10 * step + number).items()}
            for number in range(2)
        ]
        sums, _ = training_step(microbatches, [1, 2], step)
        found.append({key: float(value) for key, value in sums.losses.items()})
    return found


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("jigsaw", "joint")])
def test_losses_are_those_of_the_cpu(name: str) -> None:
    # Jigsaw drops units by the device's own generator.
    for on_gpu, on_cpu in zip(losses_of(name, CUDA), losses_of(name, CPU), strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("name", ["jigsaw", "joint"])
def test_methods_with_dropout_take_steps(name: str) -> None:
    assert all(torch.isfinite(torch.tensor(list(losses.values()))).all() for losses in losses_of(name, CUDA))


@pytest.mark.parametrize(
    "build",
    [
        lambda device: GaussianMixture(20, device=device),
        lambda device: PowerIterationClustering(device=device),
        lambda device: HierarchicalKMeans(KMeans(200, 5, devices=(device,))),
        lambda device: KMeans(50, 5, initial="kmeans++", devices=(device,)),
    ],
    ids=["gmm", "pic", "hierarchical", "kmeans++"],
)
def test_clusterers_find_the_clusters_of_the_cpu(build: Any) -> None:
    rows = mixture(5_000, 32, 40)
    shard = FeatureShard(torch.arange(len(rows)), rows)
    expected, found = (
        build(device).fit(shard, len(rows), Collectives(), torch.Generator().manual_seed(1)) for device in (CPU, CUDA)
    )
    assert float((found.assignments == expected.assignments).float().mean()) > 0.999
    assert found.objective == pytest.approx(expected.objective, rel=1e-4)


def test_linear_heads_train_on_a_gpu() -> None:
    rows = mixture(5_000, 32, 10)
    shard = FeatureShard(torch.arange(len(rows)), rows)
    found = LinearScan(10, device=CUDA).fit(shard, len(rows), Collectives(), torch.Generator().manual_seed(1))
    assert (torch.bincount(found.assignments) > 250).sum() >= 8
