"""Statistics of one representation: (N, D) -> one number. Neither centres it first."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from univ.measures.base import FEW_ROWS, Rep, as_rep, full_precision, undefined
from univ.measures.cards import ALL, register
from univ.measures.centering import column_mean


@dataclass(frozen=True)
class Statistic:
    """A number that one model has by itself: `statistic(rep)`."""

    compute: Callable[[Rep], float]
    name: str = ""  # as its `Card` says

    def __call__(self, rep: Rep) -> float:
        with full_precision():
            return self.compute(rep)


def magnitude(rep: Rep) -> float:
    """Euclidean norm of the mean representation, >= 0, in the units of the activations.

    Source: Wang et al., 2020 (arXiv 2005.09805). Raises ValueError on NaN input.
    """
    return column_mean(as_rep(rep, min_images=1)).norm().item()


def concentricity(rep: Rep) -> float:
    """Mean cosine between each representation and the mean one, in [-1, 1]; 1 = all point the same way.

    A row of zeros has cosine 0 with everything. Nan, with an `UndefinedScore` warning, if the mean is zero.

    Source: Wang et al., 2020 (arXiv 2005.09805). Raises ValueError on NaN input.
    """
    rep = as_rep(rep, min_images=1)
    mean = column_mean(rep)
    if not mean.norm() > 0:
        return undefined("concentricity is not defined: the mean representation is zero")
    direction = mean / mean.norm()
    total = 0.0
    for block in rep.split(FEW_ROWS):
        norms = block.double().norm(dim=1)
        total += torch.where(norms > 0, block.double() @ direction / norms, 0.0).sum().item()
    return total / len(rep)


@register("mag", "magnitude", per="model", lists=ALL, range=(0, math.inf))
def magnitude_statistic() -> Statistic:
    """Statistic `mag`; see `magnitude`."""
    return Statistic(magnitude)


@register("con", "concentricity", per="model", lists=ALL, range=(-1, 1))
def concentricity_statistic() -> Statistic:
    """Statistic `con`; see `concentricity`."""
    return Statistic(concentricity)
