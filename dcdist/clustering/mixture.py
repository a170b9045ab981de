"""The parameters of a Gaussian mixture, and what they say about rows.

Shapes: n rows, D features, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

Covariance = Literal["diagonal", "tied"]


@dataclass(frozen=True)
class MixtureParameters:
    """A mixture of K Gaussians of D features, float64 on the CPU."""

    weights: torch.Tensor  # [K], their sum is 1
    means: torch.Tensor  # [K, D]
    covariances: torch.Tensor  # diagonal: [K, D] variances; tied: [D, D], of every component
    covariance: Covariance

    def __post_init__(self) -> None:
        num_clusters, num_features = self.means.shape
        rows = num_clusters if self.covariance == "diagonal" else num_features
        assert self.weights.shape == (num_clusters,)
        assert self.covariances.shape == (rows, num_features)

    def log_probabilities(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, K] float64, log(weight of k * density of k at the row), of rows [n, D], where the rows lie."""
        return self.densities(rows.device).log_probabilities(rows)

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, K] float64, the probability of each component given the row; each row of it sums to 1."""
        return self.log_probabilities(rows).softmax(1)

    def densities(self, device: torch.device) -> Densities:
        """What evaluates these parameters on a device, block after block."""
        return Densities(self, device)

    def moved(self, offset: torch.Tensor) -> MixtureParameters:
        """The mixture of rows to which `offset` [D] is added."""
        return replace(self, means=self.means + offset)


class Densities:
    """Log densities of a mixture by matrix products, on one device.

    The squared Mahalanobis distance |x - m|^2 is expanded to |x|^2 - 2 x.m + |m|^2; rows and means are first moved by
    the mean of the mixture, so that little cancels. A tied covariance is factored, and rows are multiplied by the
    inverse factor, after which it is the identity.
    """

    def __init__(self, parameters: MixtureParameters, device: torch.device) -> None:
        num_features = parameters.means.shape[1]
        self._center = (parameters.weights @ parameters.means).to(device)
        means = parameters.means.to(device) - self._center
        covariances = parameters.covariances.to(device)
        self._factor: torch.Tensor | None = None
        if parameters.covariance == "tied":
            lower = torch.linalg.cholesky(covariances)
            identity = torch.eye(num_features, dtype=lower.dtype, device=device)
            self._factor = torch.linalg.solve_triangular(lower, identity, upper=False).T
            means = means @ self._factor
            log_determinants = 2 * lower.diagonal().log().sum()
            precisions = torch.ones_like(means)
        else:
            log_determinants = covariances.log().sum(1)
            precisions = 1 / covariances
        self._precisions, self._scaled_means = precisions, means * precisions
        lengths = (means * self._scaled_means).sum(1)
        constant = num_features * math.log(2 * math.pi)
        self._biases = parameters.weights.to(device).log() - (constant + log_determinants + lengths) / 2

    def log_probabilities(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, K] float64 on this device, of rows [n, D] anywhere."""
        deviations = rows.to(self._center) - self._center
        if self._factor is None:
            squares = deviations.square() @ self._precisions.T
        else:
            deviations = deviations @ self._factor
            squares = deviations.square().sum(1, keepdim=True)
        return torch.addmm(self._biases, deviations, self._scaled_means.T).sub_(squares, alpha=0.5)
