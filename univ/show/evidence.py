"""What scores of pairs of models say about architectures: means, rises over eps, intervals, tests and their words.

Pairs that share a model are not independent, nor are two trainings of one architecture: the units are architectures.
Each is left out in turn with all its pairs and seeds (jackknife), and Student's t has one degree of freedom less than
there are architectures. A t-test over the 28 pairs of 8 architectures calls half of all chance rises significant at
5 %, this one 5 % (tests/simulations/test_rise.py).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of the intervals; tests at 1 - LEVEL
MARGIN = 0.02
Pair = tuple[str, str]


def architecture(model: str) -> str:
    """The architecture of a model: its name without the seed, `resnet18` for `resnet18@2`."""
    return re.sub(r"@\d+$", "", model)


class Interval(NamedTuple):
    """The ends of a confidence interval; nan where there is none."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs of models, and how far off it may be for the choice of architectures.

    Attributes:
        mean: of the means over the pairs of every two architectures; nan without a pair.
        error: its standard error; nan where `note` says why.
        architectures, pairs: numbers of them.
    """

    mean: float
    error: float
    architectures: int
    pairs: int
    note: str = ""

    def interval(self, level: float = LEVEL) -> Interval:
        """Mean -+ Student's t times the standard error."""
        half = self.half(level)
        return Interval(self.mean - half, self.mean + half)

    def half(self, level: float = LEVEL) -> float:
        """Half the interval's width."""
        from scipy.stats import t

        return self.error * float(t.ppf((1 + level) / 2, self.architectures - 1)) if self.error >= 0 else math.nan

    @property
    def p(self) -> float:
        """Two-sided p-value of "the mean is 0"; nan without a standard error."""
        if self.mean == 0 and self.error == 0:
            return 1.0
        return 2 * self._beyond(abs(self.mean))

    def equivalence_p(self, margin: float) -> float:
        """p-value of "the mean is not within -+margin": the larger of two one-sided tests (Schuirmann 1987).

        It is below 5 % where the 90 % interval lies within -+margin.
        """
        return self._beyond(margin - abs(self.mean))

    def _beyond(self, distance: float) -> float:
        """Chance that the mean lies further than this above its expectation."""
        from scipy.stats import t

        if not self.error >= 0:
            return math.nan
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(t.sf(distance / self.error, self.architectures - 1))


def over_architectures(values: Iterable[tuple[Pair, float]]) -> Estimate:
    """Mean of a value of pairs of models, with its jackknife standard error over architectures.

    Args:
        values: (model1, model2) and a value; those that are nan are left out. Several of one pair, as in both
            directions on inverted images, and pairs of several seeds of two architectures are averaged first. Pairs
            within an architecture count as one value of it.

    Returns:
        The mean m over pairs of architectures and sqrt((a - 1) / a * sum((m_i - mean of m_i)^2)), where m_i is the
        mean without architecture i of a.

    Source: Efron and Tibshirani 1993, 11.5; for means over pairs, Arvesen 1969.
    """
    values = [(pair, float(value)) for pair, value in values if not math.isnan(value)]
    cells: dict[frozenset[str], list[float]] = {}
    for pair, value in values:
        cells.setdefault(frozenset(map(architecture, pair)), []).append(value)
    names = sorted(set().union(*cells))
    pairs = len({frozenset(pair) for pair, _ in values})
    means = np.array([np.mean(cell) for cell in cells.values()])
    mean = float(means.mean()) if len(means) else math.nan
    holds = np.array([[name in cell for name in names] for cell in cells], dtype=bool).reshape(len(cells), len(names))
    if len(names) < 2 or holds.all(axis=0).any():
        note = "no pair has a score" if not cells else f"{len(names)} architectures: no interval without one of them"
        return Estimate(mean, math.nan, len(names), pairs, note)
    without = np.array([means[~of_name].mean() for of_name in holds.T])
    error = math.sqrt((len(names) - 1) / len(names) * np.sum((without - without.mean()) ** 2))
    return Estimate(mean, error, len(names), pairs)


def change_over(points: Sequence[tuple[float, float]], span: float) -> float:
    """Change of the least-squares line through (eps, similarity) over a span of eps; nan at fewer than two eps."""
    eps, similarity = np.array([point for point in points if not math.isnan(point[1])]).reshape(-1, 2).T
    if len(set(eps)) < 2:
        return math.nan
    centered = eps - eps.mean()
    return float(span * (centered @ similarity) / (centered @ centered))


def rise(scores: Iterable[tuple[Pair, float, float]]) -> Estimate:
    """How much similarity changes from the smallest to the largest eps, along the line fitted to each pair of models.

    Args:
        scores: (pair of models, eps, similarity).
    """
    of_pair: dict[Pair, list[tuple[float, float]]] = {}
    for pair, eps, similarity in scores:
        of_pair.setdefault(pair, []).append((eps, similarity))
    radii = [eps for points in of_pair.values() for eps, similarity in points if not math.isnan(similarity)]
    span = max(radii, default=math.nan) - min(radii, default=math.nan)
    return over_architectures((pair, change_over(points, span)) for pair, points in of_pair.items())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); those that are nan stay so and do not count."""
    p, known = np.array(p_values, dtype=float), np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return p.tolist()


def verdict(change: float, p: float, equivalence_p: float = math.nan, margin: float = MARGIN) -> str:
    """What may be said of a change: rises, falls, no clear change, equivalent within -+margin; empty without a p.

    A change that is clear and yet smaller than the margin is called both.
    """
    if math.isnan(p):
        return ""
    words = [("rises" if change > 0 else "falls")] if p < 1 - LEVEL else []
    words += [f"equivalent within ±{margin:g}"] if equivalence_p < 1 - LEVEL else []
    return ", ".join(words) or "no clear change"
