"""Gaussian mixtures against hand-computed values and scikit-learn; components that lose their rows."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as ReferenceMixture

from dcdist.clustering.gmm import GaussianMixture
from dcdist.clustering.mixture import Covariance, MixtureParameters
from dcdist.clustering.partition import NonFiniteFeaturesError
from dcdist.clustering.types import UNASSIGNED, FeatureShard
from dcdist.distributed.collectives import Collectives
from dcdist.errors import UsageError
from tests.clustering.ranks import mixture, normal

KINDS: tuple[Covariance, ...] = ("diagonal", "tied")


def arguments(rows: torch.Tensor, seed: int = 11) -> tuple[FeatureShard, int, Collectives, torch.Generator]:
    shard = FeatureShard(torch.arange(len(rows)), rows)
    return shard, len(rows), Collectives(), torch.Generator().manual_seed(seed)


def test_responsibilities_by_hand() -> None:
    means = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    rows = torch.tensor([[1.0], [0.0]])
    # Tied, variance 1: densities at 0 stand in the ratio 1 to exp(-2); weights 3 to 1 make it 3 to exp(-2).
    tied = MixtureParameters(torch.tensor([0.75, 0.25]).double(), means, torch.ones(1, 1, dtype=torch.float64), "tied")
    first = 3 / (3 + math.exp(-2))
    expected = torch.tensor([[0.75, 0.25], [first, 1 - first]], dtype=torch.float64)
    torch.testing.assert_close(tied.responsibilities(rows), expected)
    constant = -math.log(2 * math.pi) / 2
    joint = torch.tensor([[math.log(0.75) - 0.5, math.log(0.25) - 0.5], [math.log(0.75), math.log(0.25) - 2]])
    torch.testing.assert_close(tied.log_probabilities(rows), joint.double() + constant)
    # Diagonal, variances 1 and 4: at 0 the second has density 1/2 exp(-4 / 8) of the first's.
    variances = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    diagonal = MixtureParameters(torch.tensor([0.5, 0.5]).double(), means, variances, "diagonal")
    first = 1 / (1 + 0.5 * math.exp(-0.5))
    expected = torch.tensor([first, 1 - first], dtype=torch.float64)
    torch.testing.assert_close(diagonal.responsibilities(rows)[1], expected)


def test_one_iteration_by_hand() -> None:
    # By symmetry the row in the middle belongs to both halfway. Component 0: count 1.5, sum -2 + 0 / 2, mean -4/3;
    # its second moment is (4 + 0 / 2) / 1.5 = 8/3, the variance 8/3 - 16/9 = 8/9. The distant rows' other
    # responsibilities are exp(-2000).
    rows = torch.tensor([[-2.0], [0.0], [2.0]])
    start = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    variances = torch.full((2, 1), 0.004, dtype=torch.float64)
    initial = MixtureParameters(torch.full((2,), 0.5, dtype=torch.float64), start, variances, "diagonal")
    fitted = GaussianMixture(2, num_iterations=1, regularization=0.0).fit_parameters(*arguments(rows), initial=initial)
    torch.testing.assert_close(fitted.parameters.means, torch.tensor([[-4 / 3], [4 / 3]], dtype=torch.float64))
    torch.testing.assert_close(fitted.parameters.covariances, torch.full((2, 1), 8 / 9, dtype=torch.float64))
    # What is added is a share of the variance of all rows, 8/3.
    fitted = GaussianMixture(2, num_iterations=1, regularization=0.3).fit_parameters(*arguments(rows), initial=initial)
    torch.testing.assert_close(fitted.parameters.covariances, torch.full((2, 1), 8 / 9 + 0.8, dtype=torch.float64))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("num_iterations", [1, 15])
@pytest.mark.parametrize("covariance", KINDS)
def test_agrees_with_scikit_learn(covariance: Covariance, num_iterations: int, offset: float) -> None:
    rows = mixture(900, 6, 7) @ normal(6, 6, seed=3) + offset
    precise = rows.double().numpy()
    weights = torch.tensor([0.4, 0.2, 0.1, 0.2, 0.1], dtype=torch.float64)
    means = rows[::180].double()
    if covariance == "diagonal":
        covariances = torch.linspace(5, 20, 30, dtype=torch.float64).view(5, 6)
        precisions = 1 / covariances
    else:
        covariances = torch.cov(rows.double().T)
        precisions = torch.linalg.inv(covariances)
    mixture_fit = GaussianMixture(5, covariance, num_iterations, tolerance=0.0, regularization=0.01)
    initial = MixtureParameters(weights, means, covariances, covariance)
    fitted = mixture_fit.fit_parameters(*arguments(rows), initial=initial)
    reference = ReferenceMixture(
        5,
        covariance_type="diag" if covariance == "diagonal" else "tied",
        max_iter=num_iterations,
        tol=0.0,
        reg_covar=0.01 * precise.var(0).mean(),
        weights_init=weights.numpy(),
        means_init=means.numpy(),
        precisions_init=precisions.numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference.fit(precise)
    assert fitted.num_iterations == reference.n_iter_ == num_iterations
    found = fitted.parameters
    np.testing.assert_allclose(found.weights, reference.weights_, atol=1e-8)
    np.testing.assert_allclose(found.means, reference.means_, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.covariances, reference.covariances_, rtol=1e-5, atol=1e-6)
    assert fitted.log_likelihood == pytest.approx(reference.lower_bound_, rel=1e-8)
    np.testing.assert_allclose(found.responsibilities(rows), reference.predict_proba(precise), atol=1e-6)
    result = mixture_fit.fit(*arguments(rows), initial=initial)
    assert result.num_empty_repaired == 0
    np.testing.assert_array_equal(result.assignments, reference.predict(precise))
    own = (rows.double() - found.means[result.assignments.long()]).square().sum(1)
    np.testing.assert_allclose(result.distances, own, rtol=1e-4)
    assert result.objective == pytest.approx(float(own.mean()), rel=1e-5)


@pytest.mark.parametrize("covariance", KINDS)
def test_starts_from_k_means_and_likelihood_never_falls(covariance: Covariance) -> None:
    rows = mixture(600, 5, 6)
    fits = [
        GaussianMixture(6, covariance, number, tolerance=0.0, regularization=1e-9).fit_parameters(*arguments(rows))
        for number in range(1, 12)
    ]
    likelihoods = [fitted.log_likelihood for fitted in fits]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(likelihoods))
    assert likelihoods[-1] > likelihoods[0]


def test_ends_where_little_changes() -> None:
    rows = torch.cat([normal(200, 3), normal(200, 3, seed=1) + 20])
    calls = []
    fitted = GaussianMixture(2, tolerance=1e-6, initial_iterations=3).fit_parameters(
        *arguments(rows), at_boundary=lambda: calls.append(1)
    )
    assert fitted.num_iterations <= 3  # k-means found the two groups
    assert 0 < len(calls) - fitted.num_iterations <= 3
    assert sorted(fitted.parameters.means.mean(1).round().tolist()) == [0, 20]


@pytest.mark.parametrize("covariance", KINDS)
def test_a_component_without_rows_is_given_one(covariance: Covariance) -> None:
    rows = mixture(200, 3, 4)
    means = torch.cat([rows[:2].double(), torch.full((2, 3), 1e3, dtype=torch.float64)])
    spread = torch.ones(4, 3) if covariance == "diagonal" else torch.eye(3)
    initial = MixtureParameters(torch.full((4,), 0.25, dtype=torch.float64), means, spread.double(), covariance)
    result = GaussianMixture(4, covariance, num_iterations=2).fit(*arguments(rows), initial=initial)
    assert result.num_empty_repaired == 2
    assert torch.bincount(result.assignments, minlength=4).tolist()[2:] == [1, 1]
    for cluster in (2, 3):
        (member,) = torch.nonzero(result.assignments == cluster)
        assert torch.equal(result.centroids[cluster], rows[member[0]])
        assert result.distances[member[0]] == 0


@pytest.mark.parametrize("covariance", KINDS)
@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_equal_rows(covariance: Covariance, value: float) -> None:
    result = GaussianMixture(4, covariance).fit(*arguments(torch.full((50, 3), value)))
    assert torch.bincount(result.assignments, minlength=4).min() > 0
    assert result.objective < 1e-6


@pytest.mark.parametrize("covariance", KINDS)
def test_more_features_than_rows(covariance: Covariance) -> None:
    result = GaussianMixture(3, covariance).fit(*arguments(normal(20, 50)))
    assert result.centroids.isfinite().all()
    assert torch.bincount(result.assignments, minlength=3).min() > 0


def test_samples_without_rows() -> None:
    shard = FeatureShard(torch.arange(30) * 2, mixture(30, 3, 3))
    result = GaussianMixture(3).fit(shard, 70, Collectives(), torch.Generator())
    assert (result.assignments[1::2] == UNASSIGNED).all()
    assert (result.assignments[60:] == UNASSIGNED).all()
    assert (result.assignments[shard.sample_ids] >= 0).all()


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"clustering.num_clusters=4 needs .* here are 3"):
        GaussianMixture(4).fit(*arguments(normal(3, 2)))
    rows = normal(9, 2)
    rows[5, 1] = math.inf
    with pytest.raises(NonFiniteFeaturesError, match=r"sample 5 "):
        GaussianMixture(2).fit(*arguments(rows))
