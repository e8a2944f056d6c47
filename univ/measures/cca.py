"""Measures from canonical correlations, SVCCA and PWCCA: (N, D_a), (N, D_b) -> similarity in [0, 1], 1 = alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import (
    BLOCK_ROWS,
    Center,
    Centered,
    Measure,
    Pair,
    Preparation,
    Prepared,
    Rep,
    cross_product,
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

    Source: Morcos, Raghu and Bengio, NeurIPS 2018, equation 2 and their released code.
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
        scores: U, (N, r) with orthonormal columns.
        columns: diag(s) V', (r, D) float64: the columns of X in the basis U.
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
        centered = Center().prepare(rep)
        if centered.square_norm == 0:
            raise ValueError("canonical correlations are not defined: the representation is constant")
        rows = centered.rows
        blocks = rows.split(BLOCK_ROWS)
        if len(rows) >= centered.width:
            values, vectors = torch.linalg.eigh(sum(block.double().T @ block.double() for block in blocks))
        else:  # the same eigenvalues from the N x N side; V = X' U / s
            values, left = torch.linalg.eigh(rows.double() @ rows.double().T)
            vectors = rows.double().T @ left / values.clamp(min=values[-1] * 1e-300).sqrt()
        values, vectors = values.flip(0), vectors.flip(1)
        floor = max(len(values) * torch.finfo(torch.float64).eps, (4 * centered.eps) ** 2)
        rank = int((values > floor * values[0]).sum())
        if self.variance < 1:
            share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
            rank = min(rank, int((share < self.variance).sum()) + 1)
        values, vectors = values[:rank].sqrt(), vectors[:, :rank]
        scores = torch.cat([(block.double() @ vectors / values).to(rows.dtype) for block in blocks])
        squares = scores.double().square().sum(dim=1)
        return Components(Centered(scores, None, squares), values[:, None] * vectors.T)


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
