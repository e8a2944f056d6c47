"""Representational similarity analysis: (N, D_a), (N, D_b) -> Spearman correlation of dissimilarities, 1 = alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, as_rep, undefined


def rsa(x: Rep, y: Rep, *, max_images: int = 4000, seed: int = 0) -> float:
    """Spearman correlation of the two representational dissimilarity matrices (RDMs).

    RDM_ij = 1 - Pearson correlation of the rows of images i and j; ranks over i < j, ties share their mean rank.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image; at least 2 columns.
        max_images: an RDM is N x N, so of more images a random subset is taken: the same for all models.
        seed: of that subset.

    Returns:
        Correlation in [-1, 1], 1 = the same order of dissimilarities. Nan, with an `UndefinedScore` warning, if all
        dissimilarities of a model are equal.

    Raises:
        ValueError: fewer than 3 images, a row without variance, different numbers of images, NaN input.

    Source: Kriegeskorte, Mur and Bandettini, Frontiers in Systems Neuroscience 2008.
    """
    return rsa_measure(max_images=max_images, seed=seed)(x, y)


def rsa_measure(*, max_images: int = 4000, seed: int = 0) -> Measure:
    """Measure `rsa`; see `rsa`."""
    return Measure("rsa", RankDissimilarities(max_images, seed), spearman, self_score=1.0, larger_is_closer=True)


@dataclass(frozen=True)
class Dissimilarities(Prepared):
    """Ranks of the dissimilarities of a model: (pairs of images,) float64, centred and of norm 1 (or all 0)."""

    ranks: Tensor
    rep: Tensor  # the caller's own, only referred to
    order: Tensor | None
    rank: "RankDissimilarities"

    def __len__(self) -> int:
        return len(self.rep)

    def permute(self, order: Tensor) -> "Dissimilarities":
        return self.rank.measure(self.rep, order if self.order is None else self.order[order])


@dataclass(frozen=True)
class RankDissimilarities(Preparation):
    """Rank the correlation distances between images, in float64."""

    max_images: int = 4000
    seed: int = 0

    def prepare(self, rep: Rep) -> Dissimilarities:
        return self.measure(as_rep(rep, min_images=3), None)

    def measure(self, rep: Tensor, order: Tensor | None) -> Dissimilarities:
        """Ranks within `rep[order]`, without making that copy."""
        from scipy.stats import rankdata

        images = self.images(len(rep)).to(rep.device)
        rows = rep[images if order is None else order.to(rep.device)[images]].double()
        rows = rows - rows.mean(dim=1, keepdim=True)
        norms = rows.norm(dim=1, keepdim=True)
        if not (norms > 0).all():
            raise ValueError(
                f"RSA is not defined: image {int(images[(norms[:, 0] == 0).nonzero()[0]])} has equal activations"
            )
        rows = rows / norms
        upper = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
        dissimilarities = (1 - rows @ rows.T)[upper[0], upper[1]]
        ranks = torch.from_numpy(rankdata(dissimilarities.cpu().numpy()))
        ranks = ranks - ranks.mean()
        norm = ranks.norm()
        return Dissimilarities(ranks / norm if norm > 0 else ranks, rep, order, self)

    def images(self, n: int) -> Tensor:
        """Indices of the images whose RDM is made."""
        if n <= self.max_images:
            return torch.arange(n)
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.max_images]


def spearman(pair: Pair) -> float:
    """Correlation of the ranks of two `Dissimilarities`."""
    if not (pair.a.ranks.any() and pair.b.ranks.any()):
        return undefined("RSA is not defined: all dissimilarities of a representation are equal")
    return torch.dot(pair.a.ranks, pair.b.ranks).item()
