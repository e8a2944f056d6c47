"""Intervals over images where the usual ones fail: rare disagreements, trials that share images."""

import numpy as np
import pytest
import torch

from univ.compare import pairwise, uncertainty
from univ.measures import REP_MEASURES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("share", [0.0006, 0.01, 0.3])
def test_shares_are_covered_also_where_they_are_rare(share):
    """Of 1000 images; Wilson's interval covers 95 % on average over shares, at one share 90 % and more."""
    counts = np.random.default_rng(0).binomial(1000, share, 2000)
    ends = [uncertainty.wilson(count / 1000, 1000, 0.95) for count in counts]
    assert all(high > low for low, high in ends)
    assert np.mean([low <= share <= high for low, high in ends]) >= 0.92
    if share < 0.001:  # a bootstrap of a sample without a disagreement has no width
        assert np.mean(counts == 0) > 0.5


@pytest.mark.parametrize(("n", "trials"), [(60, 10), (120, 10)])
def test_intervals_of_rtd_cover(n, trials):
    """Two and four batches of 30 images; the truth is the mean over fresh ones. Measured without correction: below."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 8, generator=generator) for _ in range(2)]

    def sample(count):
        points = torch.randn(count, 4, generator=generator)
        noise = 0.8 * torch.randn(2, count, 8, generator=generator)
        return {name: points @ weights + of for name, weights, of in zip("ab", maps, noise)}

    def score(reps, **options):
        measure = REP_MEASURES["rtd"](batch=30, workers=1, **options)
        return pairwise(reps, [measure], ci=0.95)["rtd"]

    truth = np.mean([score(sample(30)).scores.at["a", "b"] for _ in range(400)])
    repeats, covered, uncorrected = 150, 0, 0
    for _ in range(repeats):
        found = score(sample(n), trials=trials)
        low, high, mean = (table.at["a", "b"] for table in (found.low, found.high, found.scores))
        covered += low <= truth <= high
        error = found.spread.at["a", "b"] / trials**0.5
        uncorrected += abs(truth - mean) <= uncertainty.t_interval(0, error, trials - 1, 0.95)[1]
    assert covered / repeats >= 0.93
    assert uncorrected < covered
