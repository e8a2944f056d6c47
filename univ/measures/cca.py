"""Measures from canonical correlations, SVCCA and PWCCA: (N, D_a), (N, D_b) -> similarity in [0, 1], 1 = alike."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import (
    Center,
    Centered,
    Measure,
    Pair,
    Preparation,
    Prepared,
    Rep,
    cross_product,
    orthonormal,
    product,
)


def svcca(x: Rep, y: Rep, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of the principal components that hold most of the variance.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        variance: share of the variance that the kept components have together, in (0, 1].

    Returns:
        Sum of the canonical correlations over the smaller number of components, in [0, 1]; 1 = same subspaces.
        Unrelated models do not have 0: with r components about sqrt(r / N), which is why N should be far larger.

    Raises:
        ValueError: a constant representation, different numbers of images, NaN input.

    Source: Raghu, Gilmer, Yosinski and Sohl-Dickstein, NeurIPS 2017.
    """
    return svcca_measure(variance=variance)(x, y)


def pwcca(x: Rep, y: Rep) -> float:
    """Projection-weighted mean of the canonical correlations.

    sum a_i rho_i / sum a_i with a_i = sum_j |<h_i, x_j>|, h_i the canonical variables and x_j the columns of the model
    with the smaller rank; at equal ranks (where the source takes the first model) the mean of both choices.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.

    Returns:
        Similarity in [0, 1], 1 = the smaller model's columns are linear in the other's. As for `svcca`, unrelated
        models do not have 0.

    Raises:
        ValueError: a constant representation, different numbers of images, NaN input.

    Source: Morcos, Raghu and Bengio, NeurIPS 2018, equation 2. Their released code leaves out an inverse root of the
    covariance when it makes the canonical variables, so its weights, and scores, differ.
    """
    return pwcca_measure()(x, y)


def svcca_measure(*, variance: float = 0.99) -> Measure:
    """Measure `svcca`; see `svcca`."""
    return Measure("svcca", PrincipalComponents(variance), svcca_score, self_score=1.0, larger_is_closer=True)


def pwcca_measure() -> Measure:
    """Measure `pwcca`; see `pwcca`."""
    return Measure("pwcca", PrincipalComponents(1.0), pwcca_score, self_score=1.0, larger_is_closer=True)


@dataclass(frozen=True)
class Components(Prepared):
    """Principal components of a centred representation X = U diag(s) V'.

    Attributes:
        scores: (N, r) float64 orthonormal basis of the components.
        columns: (r, D) float64: the columns of X in that basis.
    """

    scores: Centered
    columns: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def permute(self, order: Tensor) -> "Components":
        return self._permuted(scores=self.scores.permute(order))


@dataclass(frozen=True)
class PrincipalComponents(Preparation):
    """Principal components, in float64, that together hold a share of the variance and are more than rounding."""

    variance: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise ValueError(f"the share of the variance lies in (0, 1], got {self.variance}")

    def prepare(self, rep: Rep) -> Components:
        centered = Center(double=True).prepare(rep)
        if centered.square_norm == 0:
            raise ValueError("canonical correlations are not defined: the representation is constant")
        rows = torch.cat(list(centered.blocks())) / math.sqrt(centered.square_norm)
        if len(rows) >= centered.width:
            values, vectors = torch.linalg.eigh(product(rows.T, rows))
            vectors = product(rows, vectors)
        else:  # the same eigenvalues from the N x N side
            values, vectors = torch.linalg.eigh(product(rows, rows.T))
        values, vectors = values.flip(0), vectors.flip(1)
        rank = int((values > centered.rounding(values[0].item())).sum())
        if self.variance < 1:
            share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
            rank = min(rank, int((share < self.variance).sum()) + 1)
        vectors = vectors[:, :rank]
        basis = orthonormal(vectors / vectors.norm(dim=0))  # those of small eigenvalues are not so to the last digit
        return Components(Centered(basis, None, basis.square().sum(dim=1)), product(basis.T, rows))


def correlations(pair: Pair) -> Tensor:
    """(r_a, r_b) float64 U_a' U_b: its singular values are the canonical correlations."""
    return cross_product(Pair(pair.a.scores, pair.b.scores))


def svcca_score(pair: Pair) -> float:
    """SVCCA of two `Components`."""
    cross = correlations(pair)
    return torch.linalg.svdvals(cross).clamp(max=1).sum().item() / min(cross.shape)


def pwcca_score(pair: Pair) -> float:
    """PWCCA of two `Components`."""
    left, rho, right = torch.linalg.svd(correlations(pair), full_matrices=False)
    rank_a, rank_b = pair.a.columns.shape[0], pair.b.columns.shape[0]
    scores = []
    if rank_a <= rank_b:
        scores.append(weighted(rho, left.T @ pair.a.columns))
    if rank_b <= rank_a:
        scores.append(weighted(rho, right @ pair.b.columns))
    return sum(scores) / len(scores)


def weighted(rho: Tensor, projections: Tensor) -> float:
    """Mean of the correlations (r,) weighted by the absolute projections (r, D) of a model's columns on them."""
    weights = projections.abs().sum(dim=1)
    return (torch.dot(weights, rho.clamp(max=1)) / weights.sum()).item()
