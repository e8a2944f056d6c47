"""How sure a score is: scores of permuted, resampled or left-out images -> p-values, calibrated scores, intervals.

Every draw of images depends on a seed and on their number alone, so that it is the same for every pair of models.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

BOOTSTRAP_DRAWS = 1000
JACKKNIFE_GROUPS = 20


def permutations(n: int, count: int, seed: int) -> Iterator[Tensor]:
    """`count` random orders (n,) of the images."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(n, generator=generator) for _ in range(count))


def bootstrap_draws(n: int, seed: int) -> Iterator[Tensor]:
    """Draws (n,) of the images with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(n, (n,), generator=generator) for _ in range(BOOTSTRAP_DRAWS))


def jackknife_masks(n: int, seed: int) -> list[Tensor]:
    """Masks (n,) of what is kept when each of 20 random groups of images, as even in size as n allows, is left out."""
    masks, order = [], torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for group in order.tensor_split(min(JACKKNIFE_GROUPS, n)):
        keep = torch.ones(n, dtype=torch.bool)
        keep[group] = False
        masks.append(keep)
    return masks


def jackknife_error(scores: np.ndarray) -> float:
    """Standard error of a score, from the scores without each group in turn."""
    return math.sqrt((len(scores) - 1) / len(scores) * np.sum((scores - scores.mean()) ** 2))


def percentiles(scores: np.ndarray, level: float) -> tuple[float, float]:
    """The interval that holds a share `level` of bootstrap scores; those that are undefined (nan) are left out."""
    defined = scores[~np.isnan(scores)]
    low, high = np.quantile(defined, ((1 - level) / 2, (1 + level) / 2)) if len(defined) else (math.nan, math.nan)
    return low, high


def t_interval(score: float, error: float, freedom: int, level: float) -> tuple[float, float]:
    """`score` -+ Student's t times its standard error; nan without a degree of freedom."""
    from scipy.stats import t

    half = error * float(t.ppf((1 + level) / 2, freedom)) if freedom > 0 else math.nan
    return score - half, score + half


def wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Score interval of a share of n images: it keeps its width where few or none of them count (Wilson 1927).

    With 0.06 % of 1000 images a bootstrap's interval has no width in more than half of all samples.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    middle, scale = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def trials_error(scores: np.ndarray, batch: int, n: int) -> float:
    """Standard error of the mean over J trials, each on `batch` of the same n images; nan for one trial.

    s sqrt(1 / J + batch / (n - batch)): the trials share images, so that their mean varies more than 1 / J says.

    Source: Nadeau and Bengio 2003, whose test and training parts are a trial's images and the others.
    """
    if len(scores) < 2:
        return math.nan
    return float(scores.std(ddof=1)) * math.sqrt(1 / len(scores) + batch / (n - batch))


def p_value(score: float, null: np.ndarray) -> float:
    """Add-one permutation p-value, one-sided, where larger is closer: (1 + null at least as close) / (1 + null).

    Its smallest value is 1 / (1 + permutations).
    """
    return (1 + np.sum(null >= score)) / (1 + len(null))


def calibrated(score: float, null: np.ndarray, best: float, level: float) -> float:
    """max(0, s - t) / (best - t), where larger is closer: 1 for identical models, 0 for scores that the null reaches.

    t is the order statistic ceil(level (K + 1)) of the K permuted scores and the observed one, `best` what a model
    scores against itself: unrelated models are above 0 in at most 1 - level of all cases, whatever K. Below
    K = level / (1 - level) (19 at 0.95) nothing is above 0; 199 and more tell scores apart. The bias that width and N
    give to a measure (biased CKA, k-NN) is in the null too, so that models of different widths can be compared.

    Source: Gröger, Wen and Brbić, ICML 2026 (arXiv 2602.14486), algorithm 1.
    """
    rank = math.ceil(level * (len(null) + 1) - 1e-9)  # 0.95 * 20 is 19, whatever its rounding
    threshold = np.sort([*null, score])[rank - 1]
    return (score - threshold) / (best - threshold) if score > threshold else 0.0
