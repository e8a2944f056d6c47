"""Representational similarity analysis: (N, D_a), (N, D_b) -> Spearman correlation of dissimilarities, 1 = alike."""

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, undefined
from univ.measures.cards import as_function, register
from univ.measures.subsamples import Subsamples


@register("rsa", range=(-1, 1), invariances=("permutation", "scaling"))
def rsa_measure(*, max_images: int = 4000, seed: int = 0) -> Measure:
    """Spearman correlation of the two representational dissimilarity matrices (RDMs).

    RDM_ij = 1 - Pearson correlation of the rows of images i and j; ranks over i < j, ties share their mean rank.

    Args:
        max_images: an RDM is N x N, so of more images a random subset is taken: the same for all models.
        seed: of that subset.

    Returns:
        Correlation in [-1, 1], 1 = the same order of dissimilarities. Nan, with an `UndefinedScore` warning, if all
        dissimilarities of a model are equal.

    Raises ValueError: fewer than 3 images or 2 columns, a row without variance. Source: Kriegeskorte, Mur and
    Bandettini, Frontiers in Systems Neuroscience 2008.
    """
    return Measure(Subsamples(ranked_dissimilarities, max_images, seed=seed), spearman)


rsa = as_function(rsa_measure, "rsa")


def ranked_dissimilarities(rep: Tensor, images: Tensor) -> Tensor:
    """Ranks of the dissimilarities of some images: (pairs of images,) float64, centred and of norm 1 (or all 0)."""
    from scipy.stats import rankdata

    rows = rep[images].double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if not (norms > 0).all():
        image = int(images[(norms[:, 0] == 0).nonzero()[0]])
        raise ValueError(f"RSA is not defined: image {image} has equal activations")
    rows = rows / norms
    upper = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    dissimilarities = (1 - rows @ rows.T)[upper[0], upper[1]]
    ranks = torch.from_numpy(rankdata(dissimilarities.cpu().numpy()))
    ranks = ranks - ranks.mean()
    norm = ranks.norm()
    return ranks / norm if norm > 0 else ranks


def spearman(pair: Pair) -> float:
    """Correlation of the ranks of two models."""
    a, b = pair.a.values[0], pair.b.values[0]
    if not (a.any() and b.any()):
        return undefined("RSA is not defined: all dissimilarities of a representation are equal")
    return torch.dot(a, b).item()
