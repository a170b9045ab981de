"""What only a GPU can show: the same clusters, the same features within rounding, and exact resume."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from dcdist.clustering.kmeans import KMeans
from dcdist.clustering.pca import fit_pca
from dcdist.clustering.types import FeatureShard, HeadClustering
from dcdist.distributed.collectives import Collectives
from dcdist.models.alexnet import alexnet
from dcdist.models.numerics import Numerics
from dcdist.models.sobel import Sobel
from tests.runs.conftest import experiment
from tests.runs.processes import assert_same_state, final_state, run, write_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def mixture(num_rows: int, num_features: int, num_modes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(num_modes, num_features, generator=generator)
    which = torch.randint(num_modes, (num_rows,), generator=generator)
    rows = modes[which] + 0.5 * torch.randn(num_rows, num_features, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)


def cluster(rows: torch.Tensor, devices: tuple[torch.device, ...], engine: str = "auto") -> HeadClustering:
    kmeans = KMeans(300, 10, devices=devices, engine=engine)  # type: ignore[arg-type]
    shard = FeatureShard(torch.arange(len(rows)), rows)
    return kmeans.fit(shard, len(rows), Collectives(), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_kmeans_gives_the_bits_of_the_cpu(num_shards: int) -> None:
    rows = mixture(50_000, 64, 400)
    expected, found = cluster(rows, (CPU,)), cluster(rows, (CUDA,) * num_shards)
    assert torch.equal(found.assignments, expected.assignments)
    assert torch.equal(found.centroids, expected.centroids)
    assert found.objective == expected.objective


def test_rows_stay_on_the_gpu() -> None:
    """The rows go there once; an iteration moves no more than some tables of the size of the centroids."""
    rows = mixture(50_000, 64, 400)
    cluster(rows[:1000], (CUDA,))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cluster(rows, (CUDA,))
    assert torch.cuda.max_memory_allocated() - before >= rows.nbytes
    assert torch.cuda.memory_allocated() == before, "nothing of it is left"


def test_moments_and_transform_agree_with_the_cpu() -> None:
    rows = torch.randn(5000, 128, generator=torch.Generator().manual_seed(2)) * torch.linspace(3, 0.1, 128)
    half = rows.half()
    on_cpu = fit_pca(lambda: iter(torch.split(half, 700)), 32, True, 1e-4, Collectives())
    on_gpu = fit_pca(lambda: (block.to(CUDA) for block in torch.split(half, 700)), 32, True, 1e-4, Collectives())
    torch.testing.assert_close(on_gpu.eigenvalues, on_cpu.eigenvalues, rtol=1e-10, atol=0)
    torch.testing.assert_close(on_gpu.transform(half.to(CUDA)).cpu(), on_cpu.transform(half), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("bfloat16", "channels_last", "tolerance"), [(False, False, 1e-3), (False, True, 1e-3), (True, True, 3e-2)]
)
def test_features_agree_with_the_cpu(bfloat16: bool, channels_last: bool, tolerance: float) -> None:
    torch.manual_seed(0)
    network = alexnet(Sobel(), 2, 224).eval()
    images = torch.randn(8, 3, 224, 224)
    with torch.no_grad():
        expected = network(images)
        numerics = Numerics(CUDA, bfloat16, channels_last)
        numerics.place(network)
        with numerics.autocast():
            found = network(images.to(CUDA)).float().cpu()
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_resumed_bit_equal(precision: str, tmp_path: Path, digits_folder: Path) -> None:
    def config(name: str) -> Path:
        values = experiment(digits_folder, tmp_path / name)
        values["launch"] = {"device": "cuda", "deterministic": True}
        values["train"]["precision"] = precision
        return write_config(tmp_path / f"{name}.yaml", values)

    assert run(config("undisturbed")) == [0]
    for point in ("kmeans:iteration:8", "train:step:9"):
        assert run(config("run"), DCDIST_FAULT=point) == [-signal.SIGKILL]
    assert run(config("run"), DCDIST_FAULT="train:step:3:*:SIGTERM") == [75]
    assert run(config("run")) == [0]
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed"))


def test_faiss_on_a_gpu_agrees() -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss is built without GPUs")
    rows = mixture(20_000, 64, 400)
    by_torch, by_faiss = cluster(rows, (CUDA,), "torch"), cluster(rows, (CUDA,), "faiss")
    assert torch.equal(by_faiss.assignments, by_torch.assignments)
    np.testing.assert_array_equal(by_faiss.centroids.numpy(), by_torch.centroids.numpy())
