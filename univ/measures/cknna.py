"""CKNNA, CKA between mutual nearest neighbours: (N, D_a), (N, D_b) -> similarity, 1 = alike."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, as_rep, undefined
from univ.measures.cards import as_function, register
from univ.measures.neighbors import ranks_of_common
from univ.measures.search import FindNeighbors, Neighbors, Space


@register(
    "cknna",
    symmetric=False,
    range=(-math.inf, math.inf),
    invariances=("permutation", "orthogonal", "scaling", "padding"),
)
def cknna_measure(*, neighbors: int = 10) -> Measure:
    """CKA of the similarities between mutual nearest neighbours alone (CKNNA).

    K_ij = cosine of x_i and x_j (not centred), L the same for y, both set to 0 unless j != i is among the nearest
    neighbours of i in both models; then HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)), where the self-terms keep
    each model's own neighbours. The masked matrices are sparse, and kept so: N x `neighbors` values.

    Args:
        neighbors: how many of the nearest other images, 2 to N - 1.

    Returns:
        Similarity of at most about 1, 1 = alike; not quite the same when x and y are swapped, because the mask is not
        symmetric. Nan, with an `UndefinedScore` warning, if a self-term is not positive.

    Raises ValueError: `neighbors` out of range, fewer than 4 images. Source: Huh, Cheung, Wang and Isola, ICML 2024,
    appendix A and their released code (unbiased HSIC of the masked kernels, without the 1e-6 that it adds to the
    denominator).
    """
    return Measure(FindNeighborSimilarities(neighbors), cknna_score)


cknna = as_function(cknna_measure, "cknna")


@dataclass(frozen=True)
class NeighborSimilarities(Prepared):
    """`Neighbors`, and the (N, k) float64 cosine of each image with each of its neighbours."""

    neighbors: Neighbors
    cosines: Tensor
    by_image = ("neighbors", "cosines")


@dataclass(frozen=True)
class FindNeighborSimilarities(Preparation):
    """Search neighbours by the cosine of rows that are not centred, and keep those cosines."""

    k: int = 10

    def prepare(self, rep: Rep) -> NeighborSimilarities:
        if self.k < 2:
            raise ValueError(f"CKNNA needs at least 2 neighbours, got {self.k}")
        rep = as_rep(rep, min_images=4)
        found = FindNeighbors(self.k, "cos_sim", center=False).prepare(rep)
        image = torch.arange(len(rep), device=rep.device).repeat_interleave(self.k)
        cosines = Space.of(rep, "cos_sim", False).exact(image, found.indices.flatten().long())
        return NeighborSimilarities(found, cosines.reshape(len(rep), self.k))


def cknna_score(pair: Pair) -> float:
    """CKNNA of two `NeighborSimilarities`."""
    both = masked_hsic(pair)
    a, b = (model.once_any_order(masked_self_hsic) for model in (pair.a, pair.b))
    if not (a > 0 and b > 0):
        return undefined(f"CKNNA is not defined: a self-term is not positive ({min(a, b):.3g})")
    return both / math.sqrt(a) / math.sqrt(b)


def masked_self_hsic(a: NeighborSimilarities) -> float:
    """HSIC_1 of a model's similarities to its own neighbours."""
    return masked_hsic(Pair(a, a))


def masked_hsic(pair: Pair) -> float:
    """HSIC_1 of K and L where both are 0 except at (i, j) with j a neighbour of i in both models.

    The mask is not symmetric, so tr(KL) counts the entries (i, j) whose mirror (j, i) is there too.
    """
    a, b = pair.a, pair.b
    ranks = ranks_of_common(Pair(a.neighbors, b.neighbors))
    n = len(ranks)
    row, position = (ranks > 0).nonzero(as_tuple=True)
    column = b.neighbors.indices[row, position].long()
    k, l = a.cosines[row, ranks[row, position].long() - 1], b.cosines[row, position]  # noqa: E741 - see cka.py
    here, order = (row * n + column).sort()  # one number per entry
    mirror = column * n + row
    found = torch.searchsorted(here, mirror).clamp(max=max(0, len(here) - 1))
    mirrored = here[found] == mirror
    trace = (k * l[order[found]])[mirrored].sum()
    columns_k = torch.zeros(n, dtype=k.dtype, device=k.device).index_add_(0, column, k)
    rows_l = torch.zeros_like(columns_k).index_add_(0, row, l)
    ones = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * torch.dot(columns_k, rows_l)
    return (trace + ones).item() / (n * (n - 3))
