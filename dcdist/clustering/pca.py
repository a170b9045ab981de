"""PCA-whitening fitted from moments that all ranks share, so that the raw feature matrix is never in one place.

Shapes: N rows on all ranks, b rows of a block, D raw features, d components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import scipy.linalg
import torch

from dcdist.distributed.collectives import Collectives
from dcdist.errors import RunError, UsageError

_ROWS_A_PRODUCT = 1024  # rows converted to float64 at a time
_EQUAL_ROWS = 1e-20  # variance over squared mean below which rows are equal; half precision resolves 1e-7 of a square


@dataclass(frozen=True)
class PCA:
    """An affine map from raw features to (whitened) principal components."""

    mean: torch.Tensor  # [D] float32
    projection: torch.Tensor  # [D, d] float32; the scale that whitens is in it
    eigenvalues: torch.Tensor  # [d] float64, variances along the components, descending
    numerical_rank: int  # how many of the d components carry more than rounding errors

    def transform(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n, D] of any float type -> [n, d] float32, where the rows lie."""
        return (rows.float() - self.mean.to(rows.device)) @ self.projection.to(rows.device)

    @property
    def root_mean_square_length(self) -> float:
        """Of the rows that it was fitted on, once they are transformed."""
        scales = self.projection.double().square().sum(0)
        return float((self.eigenvalues * scales).sum().sqrt())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The fields as tensors, for a checkpoint."""
        return {
            "mean": self.mean,
            "projection": self.projection,
            "eigenvalues": self.eigenvalues,
            "numerical_rank": torch.tensor(self.numerical_rank),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> PCA:
        """What `state_dict` gave."""
        return cls(state["mean"], state["projection"], state["eigenvalues"], int(state["numerical_rank"]))


@torch.no_grad()
def fit_pca(
    row_blocks: Callable[[], Iterator[torch.Tensor]],
    num_components: int,
    whiten: bool,
    epsilon: float,
    collectives: Collectives,
) -> PCA:
    """The leading principal components of the rows of all ranks. Collective; equal on every rank.

    Whitening divides by sqrt(eigenvalue + epsilon * largest eigenvalue): without an epsilon, directions in which the
    features do not vary would be blown up to noise of unit variance, or to inf.

    Args:
        row_blocks: called twice; each call passes over this rank's rows in blocks [b, D] of any float type, on the
            device that multiplies them.
        num_components: d.
        whiten: whether the components are scaled to unit variance.
        epsilon: share of the largest eigenvalue added to each before the root; above 0 where whiten is set.
        collectives: joins the ranks; a rank may have no rows.

    Raises:
        UsageError: fewer rows or features than components.
        RunError: the rows are all equal, or not finite.
    """
    shift = _shift(row_blocks, collectives)
    num_rows, mean, covariance = _moments(row_blocks, shift, num_components, collectives)
    total_variance = float(covariance.trace())
    if not torch.isfinite(covariance.diagonal()).all():
        raise RunError(
            "the features are not finite, so they have no principal components: the network has diverged. "
            "Start a new run with a lower train.learning_rate."
        )
    if num_rows > 1 and total_variance <= _EQUAL_ROWS * float(mean.square().sum()):
        raise RunError(
            f"the features are all equal: {num_rows} rows of {len(mean)} features with a total variance of "
            f"{total_variance:.3g}. The network has collapsed: start a new run with a lower train.learning_rate, "
            "or with another train.optimizer."
        )
    eigenvalues = torch.empty(num_components, dtype=torch.float64)
    components = torch.empty(len(mean), num_components, dtype=torch.float64)
    if collectives.is_main:  # one rank decides the signs and the last bits for all
        eigenvalues, components = _largest_eigenpairs(covariance, num_components)
        eigenvalues.clamp_(min=0.0)
    collectives.broadcast(eigenvalues)
    collectives.broadcast(components)
    projection = components
    if whiten:
        scales = (eigenvalues + epsilon * eigenvalues[0]).sqrt()
        projection = components / torch.where(scales > 0, scales, torch.inf)
    numerical_rank = int((eigenvalues > eigenvalues[0] * len(mean) * torch.finfo(torch.float64).eps).sum())
    return PCA(mean.float(), projection.float(), eigenvalues, numerical_rank)


def l2_normalize(rows: torch.Tensor) -> torch.Tensor:
    """Rows [n, d] scaled to length 1 each; rows of zeros stay zero."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)  # float32 squares may overflow
    return (rows / torch.where(lengths > 0, lengths, 1.0)).to(rows.dtype)


def _shift(row_blocks: Callable[[], Iterator[torch.Tensor]], collectives: Collectives) -> torch.Tensor:
    """Roughly the mean [D] float64: that of every rank's first block.

    Moments about it lose nothing to cancellation where the mean is far larger than the deviations.
    """
    first = next(row_blocks(), None)
    num_features = collectives.largest(0 if first is None else first.shape[1])
    sums = torch.zeros(num_features + 1, dtype=torch.float64)  # the last element counts
    if first is not None:
        sums[:-1] = first.double().sum(0).cpu()
        sums[-1] = len(first)
    collectives.all_reduce_sum(sums)
    return sums[:-1] / sums[-1].clamp(min=1.0)


def _moments(
    row_blocks: Callable[[], Iterator[torch.Tensor]],
    shift: torch.Tensor,
    num_components: int,
    collectives: Collectives,
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Number of rows, mean [D] and covariance [D, D] of all ranks, in float64."""
    num_features = len(shift)
    sums = torch.zeros(num_features + 1, dtype=torch.float64)
    products = torch.zeros(num_features, num_features, dtype=torch.float64)
    for block in row_blocks():
        for rows in torch.split(block, _ROWS_A_PRODUCT):
            # Float64 throughout: float32 products would drown eigenvalues below 1e-6 of the largest.
            deviations = rows.double() - shift.to(rows.device)
            products = _add_products(products, deviations)
            sums[:-1] += deviations.sum(0).cpu()
            sums[-1] += len(rows)
    products = products.cpu()
    collectives.all_reduce_sum(sums)
    num_rows = int(sums[-1])
    if min(num_rows, num_features) < num_components:
        raise UsageError(
            f"features.pca_dimensions={num_components} needs at least as many images and raw features, here are "
            f"{num_rows} images of {num_features} features: set features.pca_dimensions to at most "
            f"{min(num_rows, num_features)}, or to null"
        )
    collectives.all_reduce_sum(products)
    products = products.tril() + products.tril(-1).T
    offset = sums[:-1] / num_rows
    covariance = (products - num_rows * torch.outer(offset, offset)) / max(num_rows - 1, 1)
    return num_rows, shift + offset, covariance


def _add_products(products: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Adds deviations^T deviations to the lower triangle of `products`, where the deviations lie; returns them."""
    if deviations.device.type != "cpu":
        return products.to(deviations.device).addmm_(deviations.T, deviations)
    # A symmetric update of one triangle, in place: half the work of a matrix product. BLAS sees the transposed matrix.
    scipy.linalg.blas.dsyrk(1.0, deviations.numpy().T, beta=1.0, c=products.numpy().T, overwrite_c=True)
    return products


def _largest_eigenpairs(covariance: torch.Tensor, num_components: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalues [d], descending, and their eigenvectors [D, d], of [D, D] float64.

    LAPACK's relatively robust representations for the wanted end of the spectrum alone. Measured on one core, D = 4096,
    d = 256: 5 s; all eigenpairs by torch.linalg.eigh 17 s; subspace iteration with Rayleigh-Ritz to a residual of
    1e-12 21 s. All agree to 1e-14. The largest component of each vector is made positive, so that signs are defined.
    """
    size = len(covariance)
    values, vectors = scipy.linalg.eigh(
        covariance.numpy(), subset_by_index=[size - num_components, size - 1], driver="evr", check_finite=False
    )
    eigenvalues = torch.from_numpy(values).flip(0)
    components = torch.from_numpy(vectors).flip(1)
    largest = components.abs().argmax(0, keepdim=True)
    return eigenvalues, (components * components.gather(0, largest).sign()).contiguous()
