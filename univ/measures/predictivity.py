"""Linear predictivity: how well one representation is a linear map of another; R^2 on held-out images, 1 = fully."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, undefined
from univ.measures.cards import as_function, register
from univ.measures.centering import Center, Centered, product


@register(
    "linreg",
    varies=True,
    symmetric=False,
    range=(-math.inf, 1),
    invariances=("permutation", "orthogonal", "scaling", "translation"),
)
def linear_predictivity_measure(*, ridge: float = 1e-3, folds: int = 5) -> Measure:
    """R^2 of predicting y from x by ridge regression, cross-validated over images. Directional.

    Image i belongs to fold i mod `folds`. For each fold, on the other images: centre, then
    B = (X'X / m + ridge t I)^-1 X'Y / m with t the mean variance of a column of x and m their number. Then
    R^2 = 1 - sum over folds |Y - predicted|^2 / sum over folds |Y - mean of the others|^2.

    Args:
        ridge: > 0, in units of the mean variance of the columns of x.
        folds: 2 to N / 2.

    Returns:
        R^2 of at most 1, 1 = y is linear in x; negative if the mean predicts better. Nan, with an `UndefinedScore`
        warning, if y is constant.

    Raises ValueError: too few images for the folds, x constant. Source: as Kornblith et al., ICML 2019 (linear
    regression), but held out, and regularised as in brain-score (Schrimpf et al., 2018): in-sample R^2 of unrelated
    models is D_x / N.
    """
    return Measure(FitFolds(ridge, folds), r_squared)


linear_predictivity = as_function(linear_predictivity_measure, "linear_predictivity")


@dataclass(frozen=True)
class Folds(Prepared):
    """A representation as predictor and as target of each fold."""

    rows: Centered
    fit: "FitFolds"
    by_image = ("rows",)

    def fold(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows of the other images and of the fold's own, both less the mean of the others, float64."""
        own = torch.arange(len(self), device=self.rows.rows.device) % self.fit.folds == number
        rows = self.rows.block(0, len(self))
        mean = rows[~own].mean(dim=0)
        return rows[~own] - mean, rows[own] - mean


@dataclass(frozen=True)
class FitFolds(Preparation):
    """Take a representation; the regressions are factorised when it is first used as a predictor."""

    ridge: float = 1e-3
    folds: int = 5

    def __post_init__(self) -> None:
        if not (self.ridge > 0 and self.folds >= 2):
            raise ValueError(f"needs ridge > 0 and at least 2 folds, got {self.ridge} and {self.folds}")

    def prepare(self, rep: Rep) -> Folds:
        return Folds(Center(center=False, min_images=2 * self.folds, double=True).prepare(rep), self)


def factors(a: Folds) -> list[Tensor]:
    """Per fold the Cholesky factor of m times X'X / m + ridge t I, float64."""
    found = []
    for number in range(a.fit.folds):
        rows = a.fold(number)[0]
        scatter = product(rows.T, rows)
        level = scatter.trace() / len(scatter)
        if not level > 0:
            raise ValueError("linear predictivity is not defined: the predicting representation is constant")
        found.append(torch.linalg.cholesky(scatter + a.fit.ridge * level * torch.eye(len(scatter)).to(scatter)))
    return found


def r_squared(pair: Pair) -> float:
    """Held-out R^2 of predicting model b from model a, both `Folds`."""
    left = total = 0.0
    for number, factor in enumerate(pair.a.once(factors)):
        x, held_x = pair.a.fold(number)
        y, held_y = pair.b.fold(number)
        weights = torch.cholesky_solve(product(x.T, y), factor)
        left += (held_y - product(held_x, weights)).square().sum().item()
        total += held_y.square().sum().item()
    if total == 0:
        return undefined("linear predictivity is not defined: the predicted representation is constant")
    return 1 - left / total
