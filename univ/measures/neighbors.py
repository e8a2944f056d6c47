"""Nearest neighbours of every image in one representation, and how far two models agree on them.

(N, D) -> (N, k) indices, nearest first; two of these -> Jaccard, rank or joint similarity in [0, 1], 1 = alike.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from univ.measures.base import Center, Measure, Pair, Preparation, Prepared, Rep

Function = Literal["cos_sim", "euc"]
_ROWS = 1000  # rows of the similarity matrix that exist at a time


def jaccard(x: Rep, y: Rep, *, k: int = 500, function: Function = "cos_sim", center: bool = True) -> float:
    """Mean Jaccard similarity of the k nearest neighbours of each image.

    Per image |A n B| / |A u B| of its neighbours in either representation; the image itself is not its neighbour.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        k: number of neighbours, 1 to N - 1. Ties go to the lower index.
        function: nearest by cosine similarity (`cos_sim`) or by Euclidean distance (`euc`).
        center: subtract the column means first (matters for the cosine only).

    Returns:
        Similarity in [0, 1], 1 = same neighbours. Unrelated models have about k / (2N - k).

    Raises:
        ValueError: k out of range, different numbers of images, NaN input.

    Source: Wang et al., 2022 (Towards understanding the instability of network embedding, TKDE).
    """
    return jaccard_measure(k=k, function=function, center=center)(x, y)


def rank_similarity(x: Rep, y: Rep, *, k: int = 500, function: Function = "cos_sim", center: bool = True) -> float:
    """How alike two representations order the neighbours that they share; arguments as `jaccard`.

    Per image, over the common neighbours v with ranks r1, r2 (from 1) in either list:
    [sum of 2 / ((1 + |r1 - r2|) (r1 + r2))] / [sum of 1/i for i = 1 .. number in common]; 0 with none in common.

    Returns:
        Mean over images, in [0, 1], 1 = the same neighbours in the same order.

    Source: Wang et al., 2020 (arXiv 2005.09805).
    """
    return rank_measure(k=k, function=function, center=center)(x, y)


def joint_similarity(x: Rep, y: Rep, *, k: int = 500, function: Function = "cos_sim", center: bool = True) -> float:
    """Mean over images of Jaccard times rank similarity, in [0, 1]; arguments and source as `rank_similarity`."""
    return joint_measure(k=k, function=function, center=center)(x, y)


def jaccard_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Measure `jacc`; see `jaccard` and, for `published`, `FindNeighbors`."""
    find = FindNeighbors(k, function, center, published)
    return Measure("jacc", find, jaccard_score, self_score=1.0, larger_is_closer=True)


def rank_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Measure `rank`; see `rank_similarity`."""
    find = FindNeighbors(k, function, center, published)
    return Measure("rank", find, rank_score, self_score=1.0, larger_is_closer=True)


def joint_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Measure `rank_jacc`; see `joint_similarity`."""
    find = FindNeighbors(k, function, center, published)
    return Measure("rank_jacc", find, joint_score, self_score=1.0, larger_is_closer=True)


@dataclass(frozen=True)
class Neighbors(Prepared):
    """Neighbours of every image: (N, k) int64 indices, nearest first."""

    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def permute(self, order: Tensor) -> "Neighbors":
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)  # image order[i] is now called i
        return self._permuted(indices=position[self.indices[order]])

    def nearest(self, k: int) -> "Neighbors":
        """The first k of them: what a search for k finds."""
        if not 1 <= k <= self.indices.shape[1]:
            raise ValueError(f"k={k} of {self.indices.shape[1]} neighbours")
        return Neighbors(self.indices[:, :k])


@dataclass(frozen=True)
class FindNeighbors(Preparation):
    """Search the k nearest other images of every image, in float64; ties go to the lower index.

    published=True is the original's procedure: with the cosine an image's similarity to itself is set to 0 instead
    of being left out, so that it is its own neighbour where its k-th neighbour has a negative similarity; with the
    Euclidean distance it is its own first neighbour, which lifts unrelated models from 0.004 to 0.056 (N = 1000,
    k = 10).
    """

    k: int = 500
    function: Function = "cos_sim"
    center: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        if self.function not in ("cos_sim", "euc"):
            raise ValueError(f"unknown function {self.function!r}: neighbours are nearest by 'cos_sim' or 'euc'")

    def prepare(self, rep: Rep) -> Neighbors:
        centered = Center(self.center).prepare(rep)
        n = len(centered)
        if not 1 <= self.k < n:
            raise ValueError(
                f"k={self.k} neighbours need k between 1 and the number of images - 1 = {n - 1}: "
                "change --knn or --num-inputs"
            )
        rows = centered.rows.double()
        if self.function == "cos_sim":
            norms = rows.norm(dim=1, keepdim=True)
            rows = torch.where(norms > 0, rows / norms, 0.0)
        half_norms = rows.square().sum(dim=1) / 2
        found = []
        for start in range(0, n, _ROWS):
            closeness = rows[start : start + _ROWS] @ rows.T
            if self.function == "euc":  # -|x - y|^2 / 2 up to a term of the row alone
                closeness -= half_norms
            own = torch.arange(len(closeness), device=rows.device)
            if not self.published:
                closeness[own, start + own] = -torch.inf
            elif self.function == "cos_sim":
                closeness[own, start + own] = 0.0
            else:
                closeness[own, start + own] = torch.inf
            found.append(closeness.sort(dim=1, descending=True, stable=True).indices[:, : self.k])
        return Neighbors(torch.cat(found))


def ranks_of_common(pair: Pair) -> Tensor:
    """(N, k) rank (from 1) that the j-th neighbour of image i in model b has in model a; 0 if it is not there."""
    a, b = pair.a.indices, pair.b.indices
    if a.shape != b.shape:
        raise ValueError(f"neighbours are compared at one k: got {a.shape[1]} and {b.shape[1]}")
    n, k = a.shape
    ranks = torch.arange(1, k + 1, dtype=torch.int32, device=a.device).expand(n, k)
    found = []
    for own, other, rank in zip(a.split(_ROWS), b.split(_ROWS), ranks.split(_ROWS)):
        table = torch.zeros(len(own), n, dtype=torch.int32, device=a.device)
        found.append(table.scatter_(1, own, rank).gather(1, other))
    return torch.cat(found)


def jaccard_per_image(pair: Pair) -> Tensor:
    """(N,) float64 |A n B| / |A u B|."""
    ranks = pair.once(ranks_of_common)
    common = (ranks > 0).sum(dim=1).double()
    return common / (2 * ranks.shape[1] - common)


def rank_per_image(pair: Pair) -> Tensor:
    """(N,) float64 rank similarity."""
    rank_a = pair.once(ranks_of_common)
    k = rank_a.shape[1]
    rank_b = torch.arange(1, k + 1, dtype=torch.int32, device=rank_a.device)
    terms = 2 / ((1 + (rank_a - rank_b).abs()) * (rank_a + rank_b)).double()
    total = torch.where(rank_a > 0, terms, 0.0).sum(dim=1)
    harmonic = torch.arange(k + 1, device=rank_a.device).double().reciprocal()
    harmonic[0] = 0
    best = harmonic.cumsum(0)[(rank_a > 0).sum(dim=1)]
    return torch.where(best > 0, total / best, 0.0)


def jaccard_score(pair: Pair) -> float:
    """Jaccard similarity of two `Neighbors`."""
    return jaccard_per_image(pair).mean().item()


def rank_score(pair: Pair) -> float:
    """Rank similarity of two `Neighbors`."""
    return rank_per_image(pair).mean().item()


def joint_score(pair: Pair) -> float:
    """Joint (Jaccard times rank) similarity of two `Neighbors`."""
    return (jaccard_per_image(pair) * rank_per_image(pair)).mean().item()
