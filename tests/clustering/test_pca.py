"""PCA-whitening against scikit-learn and faiss, on any number of processes, and its refusals."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from sklearn import decomposition

from dcdist.clustering.pca import PCA, fit_pca, l2_normalize
from dcdist.distributed.collectives import Collectives
from dcdist.errors import RunError, UsageError


def correlated(num_rows: int, num_features: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(num_features, num_features, generator=generator)).Q
    scales = torch.logspace(0, -1.5, num_features)
    return (torch.randn(num_rows, num_features, generator=generator) * scales) @ mixing + mean


def fit(rows: torch.Tensor, num_components: int, whiten: bool = True, epsilon: float = 0.0) -> PCA:
    return fit_pca(lambda: iter(torch.split(rows, 97)), num_components, whiten, epsilon, Collectives())


def same_up_to_sign(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    signs = np.sign((found.numpy() * expected).sum(0))
    np.testing.assert_allclose(found.numpy(), expected * signs, rtol=0, atol=tolerance)


def test_hand_computed() -> None:
    rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + torch.tensor([5.0, -3.0])
    pca = fit(rows, 2)
    torch.testing.assert_close(pca.mean, torch.tensor([5.0, -3.0]))
    torch.testing.assert_close(pca.eigenvalues, torch.tensor([8 / 3, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(pca.projection, torch.diag(torch.tensor([(3 / 8) ** 0.5, (3 / 2) ** 0.5])))
    assert pca.numerical_rank == 2


@pytest.mark.parametrize("whiten", [True, False])
def test_root_mean_square_length_is_that_of_the_transformed_rows(whiten: bool) -> None:
    rows = correlated(500, 20, mean=3.0)
    pca = fit(rows, 7, whiten, epsilon=1e-2)
    lengths = pca.transform(rows).double().norm(dim=1)
    expected = float(lengths.square().sum() / 499) ** 0.5  # variances are of a sample
    assert pca.root_mean_square_length == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_agrees_with_scikit_learn(mean: float) -> None:
    rows = correlated(2000, 30, mean=mean)
    reference = decomposition.PCA(12, whiten=True, svd_solver="full").fit(rows.double().numpy())
    pca = fit(rows, 12)
    np.testing.assert_allclose(pca.eigenvalues, reference.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(pca.mean, reference.mean_, rtol=1e-6, atol=1e-6)
    same_up_to_sign(pca.transform(rows), reference.transform(rows.double().numpy()), 2e-5 * max(mean, 1.0) ** 0.5)


def test_agrees_with_faiss() -> None:
    rows = correlated(2000, 30)
    reference = faiss.PCAMatrix(30, 12, -0.5)
    reference.train(rows.numpy())
    whitened = reference.apply(rows.numpy()) * np.sqrt(len(rows) - 1)  # faiss does not divide by the number of rows
    same_up_to_sign(fit(rows, 12).transform(rows), whitened, 1e-3)


def test_small_eigenvalues_survive() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(5000, 8, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, 8) @ mixing + 1000
    expected = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)
    torch.testing.assert_close(fit(rows, 8).eigenvalues, expected, rtol=1e-8, atol=0)
    in_single = torch.linalg.eigvalsh(torch.cov(rows.float().double().T)).flip(0)
    torch.testing.assert_close(fit(rows.float(), 8).eigenvalues, in_single, rtol=1e-8, atol=0)


def test_half_precision_rows() -> None:
    rows = correlated(500, 10).half()
    torch.testing.assert_close(fit(rows, 4).projection, fit(rows.double(), 4).projection)
    assert fit(rows, 4).transform(rows).dtype == torch.float32


def test_whitened_rows_have_unit_covariance() -> None:
    rows = correlated(3000, 20, mean=3.0)
    torch.testing.assert_close(torch.cov(fit(rows, 20).transform(rows).T), torch.eye(20), rtol=0, atol=1e-4)


def test_without_whitening_lengths_stay() -> None:
    rows = correlated(300, 6)
    reduced = fit(rows, 6, whiten=False).transform(rows)
    torch.testing.assert_close(reduced.norm(dim=1), (rows - rows.mean(0)).norm(dim=1))


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_rank_deficient_rows_stay_finite(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 3, generator=generator) @ torch.randn(3, 10, generator=generator)
    pca = fit(rows, 6, epsilon=epsilon)
    assert pca.numerical_rank <= 4  # rounding to float32 may add a little
    whitened = pca.transform(rows)
    assert whitened.isfinite().all()
    torch.testing.assert_close(whitened[:, :3].var(0), torch.ones(3), rtol=1e-2, atol=0)
    if epsilon:
        assert whitened[:, 3:].var(0).max() < 1e-3


def test_repeatable_to_the_bit_and_signs_defined() -> None:
    rows = correlated(500, 12)
    first, second = fit(rows, 5), fit(rows, 5)
    assert torch.equal(first.projection, second.projection)
    peaks = first.projection.gather(0, first.projection.abs().argmax(0, keepdim=True))
    assert (peaks > 0).all()


def test_checkpoint_round_trip() -> None:
    pca = fit(correlated(100, 5), 3)
    restored = PCA.from_state_dict(pca.state_dict())
    rows = correlated(20, 5, seed=1)
    assert torch.equal(restored.transform(rows), pca.transform(rows))
    assert torch.equal(restored.eigenvalues, pca.eigenvalues)
    assert restored.numerical_rank == pca.numerical_rank


def test_more_components_than_rows() -> None:
    with pytest.raises(UsageError, match=r"features.pca_dimensions=9 .*5 images of 20 features.*at most 5"):
        fit(correlated(5, 20), 9)
    with pytest.raises(UsageError, match=r"features.pca_dimensions=9 .*50 images of 4 features.*at most 4"):
        fit(correlated(50, 4), 9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_equal_rows(value: float) -> None:
    with pytest.raises(RunError, match=r"features are all equal.*learning_rate"):
        fit(torch.full((1000, 7), value), 2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("position", [0, 900])
def test_non_finite_rows(value: float, position: int) -> None:
    rows = correlated(1000, 7)
    rows[position, 3] = value
    with pytest.raises(RunError, match=r"not finite.*learning_rate"):
        fit(rows, 2)


def test_l2_normalize() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [3e30, -4e30]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [0.6, -0.8]])
    torch.testing.assert_close(l2_normalize(rows), expected)
    assert l2_normalize(rows).dtype == torch.float32
