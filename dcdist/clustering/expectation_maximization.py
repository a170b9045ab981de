"""Expectation and maximisation for a Gaussian mixture, by sums that the ranks share.

Shapes: N rows on all ranks, n of them on this one, b of a block, D features, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from dcdist.clustering.mixture import Covariance, MixtureParameters
from dcdist.distributed.collectives import Collectives

_DENSITIES_A_BLOCK = 2**21  # b x K of float64 held at a time
_ROWS_A_BLOCK = 4096
_SMALLEST_COUNT = 10 * torch.finfo(torch.float64).eps  # of rows in a component; keeps divisions finite


class MixtureRows:
    """The rows of all ranks, moved so that their mean is 0, as a mixture is fitted to them.

    Moments about the mean lose little to cancellation, and a tied covariance takes one pass over the rows in all:
    whatever the responsibilities are, for each row they sum to 1, so the second moments do not depend on them.

    Args:
        features: this rank's rows.
        num_rows: of all ranks.
        num_clusters: K.
        covariance: kind of the covariances.
        regularization: of the mean variance of the features, what is added to each variance.
        device: where densities are computed.
        collectives: joins the ranks; making one is collective, as are its methods.
    """

    def __init__(
        self,
        features: torch.Tensor,
        num_rows: int,
        num_clusters: int,
        covariance: Covariance,
        regularization: float,
        device: torch.device,
        collectives: Collectives,
    ) -> None:
        self._features = features
        self._num_rows = num_rows
        self._num_clusters = num_clusters
        self._covariance = covariance
        self._device = device
        self._collectives = collectives
        num_features = features.shape[1]
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        sums = torch.zeros(num_features, dtype=torch.float64)
        for _, rows in self._blocks():
            sums += rows.sum(0).cpu()
        self.mean = collectives.all_reduce_sum(sums) / num_rows
        is_tied = covariance == "tied"
        moments = torch.zeros((num_features, num_features) if is_tied else (num_features,), dtype=torch.float64)
        for _, rows in self._blocks():
            moments += (rows.T @ rows if is_tied else rows.square().sum(0)).cpu()
        self._moments = collectives.all_reduce_sum(moments) / num_rows
        mean_variance = float((self._moments.diagonal() if is_tied else self._moments).mean())
        self._added = regularization * (mean_variance or 1.0)  # equal rows have no scale of their own

    def of_partition(self, assignments: torch.Tensor) -> MixtureParameters:
        """The most likely parameters where each row [n] belongs to one component alone."""

        def expectation(where: slice, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            clusters = assignments[where].long().to(self._device)
            return F.one_hot(clusters, self._num_clusters).double(), torch.zeros((), device=self._device)

        return self._maximized(expectation)[0]

    def updated(self, parameters: MixtureParameters) -> tuple[MixtureParameters, float]:
        """One iteration: new parameters, and the mean log-likelihood of the rows under the given ones."""
        densities = parameters.densities(self._device)

        def expectation(_: slice, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            joint = densities.log_probabilities(rows)
            logarithms = joint.logsumexp(1, keepdim=True)
            return joint.sub_(logarithms).exp_(), logarithms

        return self._maximized(expectation)

    def _maximized(
        self, expectation: Callable[[slice, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[MixtureParameters, float]:
        """The parameters that are most likely under the expectation, and the mean log-likelihood.

        Args:
            expectation: of a block of rows [b, D], where they are among all: responsibilities [b, K], log-likelihoods.
        """
        num_features = self._features.shape[1]
        is_tied = self._covariance == "tied"
        width = (1 if is_tied else 2) * num_features + 1
        sums = torch.zeros(self._num_clusters, width, dtype=torch.float64, device=self._device)
        log_likelihood = torch.zeros(1, dtype=torch.float64, device=self._device)
        for where, rows in self._blocks():
            responsibilities, logarithms = expectation(where, rows)
            ones = torch.ones_like(rows[:, :1])
            columns = [ones, rows] if is_tied else [ones, rows, rows.square()]
            sums.addmm_(responsibilities.T, torch.cat(columns, dim=1))
            log_likelihood += logarithms.sum()
        sums = self._collectives.all_reduce_sum(sums.cpu())
        log_likelihood = self._collectives.all_reduce_sum(log_likelihood.cpu())
        counts = sums[:, :1] + _SMALLEST_COUNT
        means = sums[:, 1 : num_features + 1] / counts
        if is_tied:
            covariances = self._moments - (means * counts).T @ means / self._num_rows
            covariances.diagonal().add_(self._added)
        else:
            covariances = (sums[:, num_features + 1 :] / counts - means.square()).clamp_(min=0) + self._added
        weights = (counts / counts.sum()).squeeze(1)
        for tensor in (weights, means, covariances, log_likelihood):  # rank 0 decides the last bits for all
            self._collectives.broadcast(tensor)
        parameters = MixtureParameters(weights, means, covariances, self._covariance)
        return parameters, float(log_likelihood) / self._num_rows

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """This rank's moved rows [b, D] float64 on the device, and where they are among all [n]."""
        mean = self.mean.to(self._device)
        for where in blocks_of(len(self._features), self._num_clusters):
            yield where, self._features[where].to(self._device).double() - mean


def blocks_of(num_rows: int, num_clusters: int) -> Iterator[slice]:
    """Slices of the rows [n] that are short enough to hold a number for each row and component."""
    size = max(min(_ROWS_A_BLOCK, _DENSITIES_A_BLOCK // num_clusters), 1)
    return (slice(start, start + size) for start in range(0, num_rows, size))
