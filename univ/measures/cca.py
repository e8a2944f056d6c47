"""Measures from canonical correlations, SVCCA and PWCCA: (N, D_a), (N, D_b) -> similarity in [0, 1], 1 = alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep
from univ.measures.cards import as_function, register
from univ.measures.centering import Center, Centered, cross_product, orthonormal, product


@register("svcca")
def svcca_measure(*, variance: float = 0.99) -> Measure:
    """Mean canonical correlation of the principal components that hold most of the variance.

    Args:
        variance: share of the variance that the kept components have together, in (0, 1].

    Returns:
        Sum of the canonical correlations over the smaller number of components, in [0, 1]; 1 = same subspaces.
        Unrelated models do not have 0: with r components about sqrt(r / N), which is why N should be far larger.

    Raises ValueError: a constant representation. Source: Raghu, Gilmer, Yosinski and Sohl-Dickstein, NeurIPS 2017.
    """
    return Measure(PrincipalComponents(variance), svcca_score)


@register("pwcca", invariances=("permutation", "scaling", "translation", "padding"))
def pwcca_measure() -> Measure:
    """Projection-weighted mean of the canonical correlations.

    sum a_i rho_i / sum a_i with a_i = sum_j |<h_i, x_j>|, h_i the canonical variables and x_j the columns of the model
    with the smaller rank; at equal ranks (where the source takes the first model) the mean of both choices.

    Returns:
        Similarity in [0, 1], 1 = the smaller model's columns are linear in the other's. As for `svcca`, unrelated
        models do not have 0.

    Raises ValueError: a constant representation. Source: Morcos, Raghu and Bengio, NeurIPS 2018, equation 2. Their
    released code leaves out an inverse root of the covariance when it makes the canonical variables, so its weights,
    and scores, differ.
    """
    return Measure(PrincipalComponents(1.0), pwcca_score)


@register("eos", invariances=("permutation", "orthogonal", "scaling", "padding", "linear"))
def eigenspace_overlap_measure() -> Measure:
    """Eigenspace overlap score: |U'V|_F^2 / max(r_a, r_b), U and V the left singular vectors; not centred.

    Returns:
        Similarity in [0, 1], 1 = the same column space; unrelated models have about min(r_a, r_b) / N.

    Raises ValueError: a representation of zeros. Source: May, Zhang, Dao and Ré, NeurIPS 2019, whose divisor is the
    larger width, as in ReSi: the same unless a model has fewer ranks r than columns, which then is not 1 with itself.
    """
    return Measure(PrincipalComponents(1.0, center=False), eigenspace_overlap)


svcca = as_function(svcca_measure, "svcca")
pwcca = as_function(pwcca_measure, "pwcca")
eigenspace_overlap_score = as_function(eigenspace_overlap_measure, "eigenspace_overlap_score")


@dataclass(frozen=True)
class Components(Prepared):
    """Principal components of a centred representation X = U diag(s) V'.

    Attributes:
        scores: (N, r) float64 orthonormal basis of the components.
        columns: (r, D) float64: the columns of X in that basis.
    """

    scores: Centered
    columns: Tensor
    by_image = ("scores",)


@dataclass(frozen=True)
class PrincipalComponents(Preparation):
    """Principal components, in float64, that together hold a share of the variance and are more than rounding."""

    variance: float = 0.99
    center: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise ValueError(f"the share of the variance lies in (0, 1], got {self.variance}")

    def prepare(self, rep: Rep) -> Components:
        centered = Center(self.center, double=True).prepare(rep)
        rows = centered.scaled_rows("canonical correlations are")
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


def eigenspace_overlap(pair: Pair) -> float:
    """Eigenspace overlap score of two `Components`."""
    cross = correlations(pair)
    return cross.square().sum().item() / max(cross.shape)


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
