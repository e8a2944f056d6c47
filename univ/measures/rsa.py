"""Representational similarity analysis: (N, D_a), (N, D_b) -> correlation of dissimilarities, 1 = alike."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, undefined
from univ.measures.cards import as_function, register
from univ.measures.distances import distances
from univ.measures.subsamples import Subsamples

Dissimilarity = Literal["correlation", "euclidean", "cosine"]
Comparison = Literal["pearson", "spearman", "kendall", "cosine"]


@register(
    "rsa",
    range=(-1, 1),
    invariances=("permutation", "scaling"),
    names={"dissimilarity": "rsa_dissimilarity", "comparison": "rsa_comparison"},
)
def rsa_measure(
    *,
    dissimilarity: Dissimilarity = "correlation",
    comparison: Comparison = "spearman",
    max_images: int = 4000,
    seed: int = 0,
) -> Measure:
    """Correlation of the two representational dissimilarity matrices (RDMs), over pairs of images i < j.

    Args:
        dissimilarity: RDM_ij = 1 - Pearson `correlation` of the rows of images i and j, 1 - their `cosine`, or their
            `euclidean` distance.
        comparison: of the RDMs: `pearson` or `spearman` correlation (ties share their mean rank), `kendall` tau-a
            (concordant less discordant pairs, over all pairs of pairs) or `cosine`.
        max_images: an RDM is N x N, so of more images a random subset is taken: the same for all models.
        seed: of that subset.

    Returns:
        Correlation in [-1, 1], 1 = the same order of dissimilarities (tau-a: and no ties). Nan, with an
        `UndefinedScore` warning, if all dissimilarities of a model are equal.

    Raises ValueError: fewer than 3 images or 2 columns, a row without variance. Source: Kriegeskorte, Mur and
    Bandettini, Frontiers in Systems Neuroscience 2008.
    """
    if dissimilarity not in get_args(Dissimilarity):
        raise ValueError(f"unknown dissimilarity {dissimilarity!r}: choose from {', '.join(get_args(Dissimilarity))}")
    if comparison not in get_args(Comparison):
        raise ValueError(f"unknown comparison {comparison!r}: choose from {', '.join(get_args(Comparison))}")
    score = kendall if comparison == "kendall" else correlation
    return Measure(Subsamples(Dissimilarities(dissimilarity, comparison), max_images, seed=seed), score)


rsa = as_function(rsa_measure, "rsa")


@dataclass(frozen=True)
class Dissimilarities:
    """(pairs of images,) float64 dissimilarities of some images: for Kendall as they are, else of norm 1 (or all 0):
    ranked for Spearman, centred for both correlations."""

    dissimilarity: Dissimilarity
    comparison: Comparison

    def __call__(self, rep: Tensor, images: Tensor) -> Tensor:
        from scipy.stats import rankdata

        upper = torch.triu_indices(len(images), len(images), offset=1, device=rep.device)
        values = self.matrix(rep, images)[upper[0], upper[1]]
        if self.comparison == "kendall":
            return values
        if self.comparison == "spearman":
            values = torch.from_numpy(rankdata(values.cpu().numpy()))
        if self.comparison != "cosine":
            values = values - values.mean()
        norm = values.norm()
        return values / norm if norm > 0 else values

    def matrix(self, rep: Tensor, images: Tensor) -> Tensor:
        """(n, n) float64 dissimilarities."""
        if self.dissimilarity == "euclidean":
            return distances(rep, images)
        rows = rep[images].double()
        if self.dissimilarity == "correlation":
            rows = rows - rows.mean(dim=1, keepdim=True)
        norms = rows.norm(dim=1, keepdim=True)
        if not (norms > 0).all():
            image = int(images[(norms[:, 0] == 0).nonzero()[0]])
            what = "equal activations" if self.dissimilarity == "correlation" else "no activation"
            raise ValueError(f"RSA is not defined: image {image} has {what}")
        rows = rows / norms
        return 1 - rows @ rows.T


def correlation(pair: Pair) -> float:
    """Inner product of the normalised dissimilarities of two models."""
    a, b = pair.a.values[0], pair.b.values[0]
    if not (a.any() and b.any()):
        return undefined("RSA is not defined: all dissimilarities of a representation are equal")
    return torch.dot(a, b).item()


def kendall(pair: Pair) -> float:
    """Tau-a of the dissimilarities of two models, from SciPy's tau-b."""
    from scipy.stats import kendalltau

    a, b = (model.values[0].cpu().numpy() for model in (pair.a, pair.b))
    pairs = len(a) * (len(a) - 1) / 2
    untied = 1.0
    for values in (a, b):
        counts = np.unique(values, return_counts=True)[1].astype(float)
        untied *= 1 - (counts * (counts - 1)).sum() / 2 / pairs
    if untied == 0:
        return undefined("RSA is not defined: all dissimilarities of a representation are equal")
    return float(kendalltau(a, b).statistic) * math.sqrt(untied)
