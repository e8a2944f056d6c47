"""Means over pairs with architectures as units, rises over eps, corrected p-values, and the words for them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from univ.errors import InputError
from univ.show import evidence, quantities


def pairs_of(count: int, seeds: int = 1) -> list[tuple[str, str]]:
    names = [f"{name}@{seed}" if seeds > 1 else name for name in "abcdefgh"[:count] for seed in range(seeds)]
    return list(itertools.combinations(names, 2))


def test_mean_and_error_by_hand():
    # pairs ab 1, ac 2, bc 6: mean 3; without a 6, without b 2, without c 1, whose mean is 3; 2/3 * (9 + 1 + 4)
    found = evidence.over_architectures(zip(pairs_of(3), (1.0, 2.0, 6.0)))
    assert found.mean == 3 and found.error == pytest.approx(math.sqrt(2 / 3 * 14)) and not found.note
    half = stats.t.ppf(0.975, 2) * found.error
    assert found.interval() == pytest.approx((3 - half, 3 + half)) and found.half() == pytest.approx(half)
    assert found.p == pytest.approx(2 * stats.t.sf(3 / found.error, 2))


def test_sums_of_two_effects_give_the_t_test_of_the_effects():
    """x_ij = u_i + u_j: the mean is twice that of u, and so are its error, interval and p."""
    own = np.random.default_rng(0).normal(0.3, 1, 6)
    effects = dict(zip("abcdef", own))
    found = evidence.over_architectures((pair, effects[pair[0]] + effects[pair[1]]) for pair in pairs_of(6))
    test = stats.ttest_1samp(own, 0)
    interval = test.confidence_interval(0.95)
    assert (found.mean / 2, found.error / 2) == pytest.approx((own.mean(), stats.sem(own)))
    assert found.p == pytest.approx(test.pvalue)
    assert [end / 2 for end in found.interval()] == pytest.approx([interval.low, interval.high])
    for margin in (0.1, 1.0, 5.0):
        above = stats.ttest_1samp(2 * own, -margin, alternative="greater")
        below = stats.ttest_1samp(2 * own, margin, alternative="less")
        assert found.equivalence_p(margin) == pytest.approx(max(above.pvalue, below.pvalue))


def test_seeds_and_directions_are_averaged_before_architectures_are():
    one = dict(zip(pairs_of(4), np.random.default_rng(1).normal(size=6)))
    several = []
    for (a, b), seed, other in itertools.product(one, range(3), range(2)):
        several += [
            ((f"{a}@{seed}", f"{b}@{other}"), one[a, b] + seed - 1),
            ((f"{b}@{other}", f"{a}@{seed}"), one[a, b]),
        ]
    once, often = evidence.over_architectures(one.items()), evidence.over_architectures(several)
    assert (often.mean, often.error) == pytest.approx((once.mean, once.error))
    assert (once.architectures, once.pairs, often.architectures, often.pairs) == (4, 6, 4, 36)


def test_within_architectures_each_is_one_value():
    found = evidence.over_architectures([(("a@0", "a@1"), 1.0), (("b@0", "b@1"), 3.0), (("b@0", "b@2"), 5.0)])
    assert found.mean == 2.5 and found.error == pytest.approx(stats.sem([1.0, 4.0]))


@pytest.mark.parametrize(
    ("values", "mean", "note"),
    [
        ([], math.nan, "no pair has a score"),
        ([(("a", "b"), math.nan)], math.nan, "no pair has a score"),
        ([(("a", "b"), 0.5)], 0.5, "2 architectures"),
        ([(("a", "b"), 0.5), (("a", "c"), 0.7)], 0.6, "3 architectures"),  # nothing is left without a
    ],
)
def test_without_an_interval_there_is_a_reason(values, mean, note):
    found = evidence.over_architectures(values)
    assert found.mean == pytest.approx(mean, nan_ok=True) and note in found.note
    assert np.isnan([*found.interval(), found.p, found.equivalence_p(0.1)]).all()


def table_of(changes: dict[tuple[str, str], float], eps=(0.0, 1.0, 3.0)) -> pd.DataFrame:
    rows = [(*pair, radius, 0.5 + change * radius / 3) for pair, change in changes.items() for radius in eps]
    return pd.DataFrame(rows, columns=["model1", "model2", "eps", "score"])


def test_rise_is_the_change_along_each_pairs_line():
    changes = dict(zip(pairs_of(5), np.random.default_rng(2).normal(0.1, 0.1, 10)))
    trend = quantities.eps_trend(table_of(changes))
    expected = evidence.over_architectures(changes.items())
    assert trend == pytest.approx((expected.mean, *expected.interval(), expected.p))
    assert quantities.eps_trend(table_of(changes), level=0.9).low == pytest.approx(expected.interval(0.9).low)
    assert quantities.eps_equivalence(table_of(changes), 0.3) == pytest.approx(expected.equivalence_p(0.3))
    noisy = table_of({("a", "b"): 0.3, ("a", "c"): 0.3, ("b", "c"): 0.3})
    noisy["score"] += np.random.default_rng(3).normal(0, 0.1, len(noisy))
    slopes = [3 * np.polyfit(rows["eps"], rows["score"], 1)[0] for _, rows in noisy.groupby(["model1", "model2"])]
    assert quantities.eps_trend(noisy).mean == pytest.approx(np.mean(slopes))


def test_rise_is_of_pairs_of_different_architectures_and_of_what_is_alike():
    changes = {pair: 0.9 if pair[0][0] == pair[1][0] else 0.2 for pair in pairs_of(3, seeds=2)}
    assert quantities.eps_trend(table_of(changes)).mean == pytest.approx(0.2)
    distances = table_of(changes).assign(measure="rtd")
    assert quantities.eps_trend(distances).mean == pytest.approx(-0.2)  # a larger distance is less alike
    assert quantities.eps_trend(table_of(changes, eps=(1.0,)))[1:] == pytest.approx((math.nan,) * 3, nan_ok=True)
    with pytest.raises(InputError, match=r"of one measure, got cka, rtd"):
        quantities.eps_trend(pd.concat([distances, distances.assign(measure="cka")]))


def test_holm_by_hand():
    # sorted .01 .02 .04: times 3, 2, 1, never falling
    assert evidence.holm([0.04, math.nan, 0.01, 0.02]) == pytest.approx([0.04, math.nan, 0.03, 0.04], nan_ok=True)
    assert evidence.holm([0.6, 0.7]) == [1, 1] and evidence.holm([]) == []


@pytest.mark.parametrize(
    ("change", "p", "equivalence_p", "words"),
    [
        (0.3, 0.01, 0.9, "rises"),
        (-0.3, 0.01, math.nan, "falls"),
        (0.3, 0.06, 0.9, "no clear change"),
        (0.001, 0.6, 0.03, "equivalent within ±0.02"),
        (0.004, 0.01, 0.03, "rises, equivalent within ±0.02"),
        (0.3, math.nan, math.nan, ""),
    ],
)
def test_verdicts(change, p, equivalence_p, words):
    assert evidence.verdict(change, p, equivalence_p, 0.02) == words


@pytest.mark.parametrize(
    ("model", "name"), [("vgg11@2", "vgg11"), ("vgg11", "vgg11"), ("hub:a/b@main", "hub:a/b@main")]
)
def test_architecture_of_a_model(model, name):
    assert evidence.architecture(model) == name
