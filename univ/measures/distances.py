"""Measures from the distances between images: (N, D_a), (N, D_b) -> score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, undefined
from univ.measures.cards import as_function, register
from univ.measures.centering import Center
from univ.measures.subsamples import Subsamples

_NEAR = 1e-5  # share of both squared norms below which a squared distance is summed from differences

EUCLIDEAN = ("permutation", "orthogonal", "translation", "padding")


@register("dcor", invariances=(*EUCLIDEAN, "scaling"))
def distance_correlation_measure(*, max_images: int = 4000, seed: int = 0) -> Measure:
    """Distance correlation: sqrt(dCov^2(X, Y) / sqrt(dCov^2(X, X) dCov^2(Y, Y))), dCov^2 the mean product of the
    doubly centred matrices of Euclidean distances (the V-statistic, which grows with D / N for unrelated models).

    Args:
        max_images: the matrices are N x N, so of more images a random subset is taken: the same for all models.
        seed: of that subset.

    Returns:
        Similarity in [0, 1], 1 = equal up to rotation, shift and scale. Nan, with an `UndefinedScore` warning, if all
        images of a model are equal.

    Source: Székely, Rizzo and Bakirov, Annals of Statistics 2007; not squared, as in ReSi.
    """
    return Measure(Subsamples(centered_distances, max_images, seed=seed), distance_correlation_score)


@register("rsm_norm", larger_is_closer=False, invariances=EUCLIDEAN)
def rsm_norm_measure(*, max_images: int = 4000, seed: int = 0) -> Measure:
    """Frobenius norm of the difference of both N x N matrices of Euclidean distances; arguments as
    `distance_correlation`.

    Returns:
        Distance >= 0 in the units of the activations; it grows with N.

    Source: Yin and Shen, NeurIPS 2018 (PIP loss, on inner products), with distances as in ReSi; ReSi's text has the
    Frobenius norm, its code `numpy.linalg.norm(..., ord=2)` on the square matrices, their largest singular value.
    """
    return Measure(Subsamples(distances, max_images, seed=seed), distance_norm)


@register("uniformity", larger_is_closer=False, invariances=EUCLIDEAN)
def uniformity_measure(*, t: float = 2.0, max_images: int = 4000, seed: int = 0) -> Measure:
    """|u(X) - u(Y)|, u = log of the mean over all i, j (i = j too) of exp(-t |x_i - x_j|^2); arguments as
    `distance_correlation`.

    Args:
        t: > 0. The default presumes rows of about norm 1: where distances are large only i = j is left.

    Returns:
        Distance >= 0, 0 = equally uniform: it does not ask which image is which, so permutations of the images are no
        null for it.

    Source: Wang and Isola, ICML 2020 (of rows of norm 1, i < j); rows as they are and i = j as in ReSi.
    """
    if not t > 0:
        raise ValueError(f"the t of uniformity is positive, got {t}")
    return Measure(Subsamples(Uniformity(t), max_images, seed=seed), value_difference)


@register("imd", larger_is_closer=False, invariances=(*EUCLIDEAN, "scaling"))
def imd_measure(*, neighbors: int = 5, max_images: int = 4000, seed: int = 0) -> Measure:
    """Intrinsic multi-scale distance: max over t of exp(-2 (t + 1/t)) |h_X(t) - h_Y(t)|, h(t) = tr exp(-t L) / N.

    L is the normalised Laplacian of the graph of Euclidean nearest neighbours (either way round); 256 t in [0.1, 10].

    Args:
        neighbors: of each image in the graph.
        max_images, seed: as `distance_correlation`.

    Returns:
        Distance >= 0 (below exp(-4)), 0 = graphs of the same spectrum: it does not ask which image is which.

    Source: Tsitsulin et al., ICLR 2020. The trace is exact, from all eigenvalues; the `imd` package estimates it from
    random vectors, and ReSi averages five such estimates of 8000 vectors.
    """
    return Measure(Subsamples(HeatTrace(neighbors), max_images, seed=seed), imd_score)


distance_correlation = as_function(distance_correlation_measure, "distance_correlation")
rsm_norm_difference = as_function(rsm_norm_measure, "rsm_norm_difference")
uniformity_difference = as_function(uniformity_measure, "uniformity_difference")
imd = as_function(imd_measure, "imd")


def distances(rep: Tensor, images: Tensor) -> Tensor:
    """(n, n) float64 Euclidean distances between some images."""
    rows = Center(double=True).prepare(rep[images]).about_median().block(0, len(images))
    norms = rows.square().sum(dim=1)
    both = norms[:, None] + norms
    squares = both - 2 * rows @ rows.T
    left, right = (squares < _NEAR * both).nonzero(as_tuple=True)  # there the difference of norms is rounding
    for start in range(0, len(left), 2**14):
        i, j = left[start : start + 2**14], right[start : start + 2**14]
        squares[i, j] = (rows[i] - rows[j]).square().sum(dim=1)
    return squares.sqrt()


def centered_distances(rep: Tensor, images: Tensor) -> Tensor:
    """(n, n) distances less the means of rows and columns, of Frobenius norm 1 (or all 0)."""
    found = distances(rep, images)
    if not found.any():
        return found
    found = found / found.max()
    mean = found.mean(dim=0)
    found = found - mean - mean[:, None] + mean.mean()
    return found / torch.linalg.vector_norm(found)


def distance_correlation_score(pair: Pair) -> float:
    """Distance correlation of two models of `centered_distances`."""
    a, b = pair.a.values[0], pair.b.values[0]
    if not (a.any() and b.any()):
        return undefined("distance correlation is not defined: all images of a representation are equal")
    return (a * b).sum().clamp(0, 1).sqrt().item()  # rounding can leave [0, 1]


def distance_norm(pair: Pair) -> float:
    """Norm of the difference of two models of `distances`."""
    return torch.linalg.vector_norm(pair.a.values[0] - pair.b.values[0]).item()


@dataclass(frozen=True)
class Uniformity:
    """Log of the mean of exp(-t squared distance)."""

    t: float

    def __call__(self, rep: Tensor, images: Tensor) -> Tensor:
        return (-self.t * distances(rep, images).square()).exp().mean().log()


def value_difference(pair: Pair) -> float:
    """Absolute difference of the numbers of two models."""
    return (pair.a.values[0] - pair.b.values[0]).abs().item()


@dataclass(frozen=True)
class HeatTrace:
    """(256,) mean exp(-t L) at 256 t, from the eigenvalues of the Laplacian of the neighbour graph."""

    neighbors: int

    def __call__(self, rep: Tensor, images: Tensor) -> Tensor:
        if not 1 <= self.neighbors < len(images):
            raise ValueError(
                f"IMD of {len(images)} images takes 1 to {len(images) - 1} neighbours, got {self.neighbors}"
            )
        found = distances(rep, images).fill_diagonal_(torch.inf).argsort(dim=1, stable=True)[:, : self.neighbors]
        graph = torch.zeros(len(images), len(images), dtype=torch.float64, device=rep.device).scatter_(1, found, 1)
        graph = torch.maximum(graph, graph.T)
        scale = graph.sum(dim=1).rsqrt()
        laplacian = torch.eye(len(graph)).to(graph) - scale[:, None] * graph * scale
        eigenvalues = torch.linalg.eigvalsh(laplacian)
        return torch.stack([(-t * eigenvalues).exp().mean() for t in temperatures()])


def temperatures() -> Tensor:
    """The 256 t, from 0.1 to 10."""
    return torch.logspace(-1, 1, 256, dtype=torch.float64)


def imd_score(pair: Pair) -> float:
    """IMD of two models of `HeatTrace`."""
    t = temperatures().to(pair.a.values.device)
    return ((-2 * (t + 1 / t)).exp() * (pair.a.values[0] - pair.b.values[0]).abs()).max().item()
