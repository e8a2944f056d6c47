"""How far two models agree on the nearest neighbours of each image: Jaccard, rank, joint similarity and mutual k-NN.

(N, k) indices of the neighbours in two models, as `univ.measures.search` finds them -> similarity in [0, 1], 1 = alike.
"""

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, mean_of
from univ.measures.cards import ALL, PAPER, as_function, register
from univ.measures.search import FindNeighbors, Function

OF_NEIGHBORS = {"neighbors": True, "names": {"k": "knn"}}
_FEW = 250  # rows of a table of all images: in cache


@register("jacc", "jaccard", "jac", "Jaccard", lists=PAPER, **OF_NEIGHBORS)
def jaccard_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Mean Jaccard similarity of the k nearest neighbours of each image.

    Per image |A n B| / |A u B| of its neighbours in either representation; the image itself is not its neighbour.

    Args:
        k: number of neighbours, 1 to N - 1. Ties go to the lower index.
        function: nearest by cosine similarity (`cos_sim`) or by Euclidean distance (`euc`).
        center: subtract the column means first (matters for the cosine only).
        published: the original's procedure, see `FindNeighbors`.

    Returns:
        Similarity in [0, 1], 1 = same neighbours. Unrelated models have about k / (2N - k).

    Raises ValueError: k out of range. Source: Wang et al., 2022 (Towards understanding the instability of network
    embedding, TKDE).
    """
    return Measure(FindNeighbors(k, function, center, published, ordered=False), jaccard_score)


@register("rank", label="rank similarity", lists=ALL, **OF_NEIGHBORS)
def rank_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """How alike two representations order the neighbours that they share; arguments as `jaccard`.

    Per image, over the common neighbours v with ranks r1, r2 (from 1) in either list:
    [sum of 2 / ((1 + |r1 - r2|) (r1 + r2))] / [sum of 1/i for i = 1 .. number in common]; 0 with none in common.

    Returns:
        Mean over images, in [0, 1], 1 = the same neighbours in the same order.

    Source: Wang et al., 2020 (arXiv 2005.09805).
    """
    return Measure(FindNeighbors(k, function, center, published), rank_score)


@register("rank_jacc", "joint", "joint", "joint rank and Jaccard", lists=ALL, **OF_NEIGHBORS)
def joint_measure(
    *, k: int = 500, function: Function = "cos_sim", center: bool = True, published: bool = False
) -> Measure:
    """Mean over images of Jaccard times rank similarity, in [0, 1]; arguments and source as `rank_similarity`."""
    return Measure(FindNeighbors(k, function, center, published), joint_score)


@register("mutual_knn", invariances=("permutation", "orthogonal", "scaling", "padding"))
def mutual_knn_measure(*, neighbors: int = 10) -> Measure:
    """Mean share of the nearest neighbours (by cosine, not centred) that an image has in both representations.

    Args:
        neighbors: how many of the nearest other images, 1 to N - 1.

    Returns:
        Similarity in [0, 1], 1 = same neighbours. Unrelated models have neighbors / (N - 1).

    Raises ValueError: `neighbors` out of range. Source: Huh, Cheung, Wang and Isola, ICML 2024 (The Platonic
    representation hypothesis).
    """
    return Measure(FindNeighbors(neighbors, "cos_sim", center=False, ordered=False), mutual_knn_score)


jaccard = as_function(jaccard_measure, "jaccard")
rank_similarity = as_function(rank_measure, "rank_similarity")
joint_similarity = as_function(joint_measure, "joint_similarity")
mutual_knn = as_function(mutual_knn_measure, "mutual_knn")


def same_k(pair: Pair) -> tuple[Tensor, Tensor]:
    a, b = pair.a.indices, pair.b.indices
    if a.shape != b.shape:
        raise ValueError(f"neighbours are compared at one k: got {a.shape[1]} and {b.shape[1]}")
    return a, b


def ranks_of_common(pair: Pair) -> Tensor:
    """(N, k) rank (from 1) that the j-th neighbour of image i in model b has in model a; 0 if it is not there."""
    a, b = same_k(pair)
    n, k = a.shape
    ranks = torch.arange(1, k + 1, dtype=torch.int32, device=a.device).expand(n, k)
    found = []
    for own, other, rank in zip(a.split(_FEW), b.split(_FEW), ranks.split(_FEW)):
        table = torch.zeros(len(own), n, dtype=torch.int32, device=a.device)
        found.append(table.scatter_(1, own.long(), rank).gather(1, other.long()))
    return torch.cat(found)


def numbers_in_common(pair: Pair) -> Tensor:
    """(N,) float64 number of neighbours that an image has in both models."""
    a, b = same_k(pair)
    found = []
    for own, other in zip(a.split(_FEW), b.split(_FEW)):
        table = torch.zeros(len(own), len(a), dtype=torch.bool, device=a.device)
        found.append(table.scatter_(1, own.long(), True).gather(1, other.long()).sum(dim=1))
    return torch.cat(found).double()


def jaccard_per_image(pair: Pair) -> Tensor:
    """(N,) float64 |A n B| / |A u B|."""
    common = pair.once(numbers_in_common)
    return common / (2 * pair.a.indices.shape[1] - common)


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


def joint_per_image(pair: Pair) -> Tensor:
    """(N,) float64 Jaccard times rank similarity."""
    return pair.once(jaccard_per_image) * pair.once(rank_per_image)


def mutual_knn_score(pair: Pair) -> float:
    """Mutual k-NN of two `Neighbors`."""
    return pair.once(numbers_in_common).mean().item() / pair.a.indices.shape[1]


jaccard_score, rank_score, joint_score = map(mean_of, (jaccard_per_image, rank_per_image, joint_per_image))
