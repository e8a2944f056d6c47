"""The permutation test in which models are the units, and what it is given of subgroups."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_results import write_subgroups

from univ import results
from univ.show import evidence
from univ.show.differences import model_level_test, subgroup_difference, subgroup_rows


def pairs_of(models: int) -> list[tuple[str, str]]:
    return list(itertools.combinations("abcdefghijklmnopqrstuvwxyz"[:models], 2))


@pytest.mark.parametrize("left_out", [{}, {("a", "b"): math.nan}])
def test_a_constant_difference_is_as_significant_as_models_allow(left_out):
    test = model_level_test(dict.fromkeys(pairs_of(8), 0.2) | left_out)
    assert test.mean == pytest.approx(0.2) and test.models == 8
    assert test.p == pytest.approx(2 / 2**8) == test.smallest_p


def test_three_models_by_hand():
    # d_ab = u_a + u_b and so on: shares 1, 2 and 4; the mean difference is 2/3 of their sum, 14/3
    test = model_level_test({("a", "b"): 3.0, ("a", "c"): 5.0, ("b", "c"): 6.0})
    assert test.mean == pytest.approx(14 / 3)
    assert test.p == pytest.approx(2 / 8)  # only +++ and --- reach it
    test = model_level_test({("a", "b"): 0.0, ("a", "c"): 0.0, ("b", "c"): 1.0})
    # shares -1/2, 1/2, 1/2: of the eight sums +-1/2 (six times) and +-3/2 (twice) all reach 1/2
    assert test.p == 1


def test_too_few_models_have_no_p_value():
    test = model_level_test({("a", "b"): 0.5})
    assert test.mean == 0.5 and math.isnan(test.p)
    assert math.isnan(model_level_test({}).p)


def test_shares_that_the_pairs_do_not_identify_have_no_p_value():
    between = {pair: 0.2 for pair in itertools.product("abcd", "wxyz")}  # adding 1 to a-d, -1 to w-z changes nothing
    test = model_level_test(between)
    assert math.isnan(test.p) and "do not tell the shares" in test.note and test.half == 0
    assert model_level_test(between | {("a", "b"): 0.2, ("w", "x"): 0.2}).p > 0


def test_seeds_of_an_architecture_are_one_unit():
    """Twelve models, four architectures: no p below 2 / 2^4, and the interval is that of the four."""
    effects = dict(zip("abcd", (0.1, 0.3, 0.2, 0.6)))
    models = [f"{name}@{seed}" for name in "abcd" for seed in range(3)]
    test = model_level_test({(a, b): effects[a[0]] + effects[b[0]] for a, b in itertools.combinations(models, 2)})
    assert (test.models, test.p, test.smallest_p) == (4, 2 / 16, 2 / 16)


def test_the_interval_is_the_jackknifes():
    one = dict(zip(pairs_of(4), np.random.default_rng(0).normal(size=6)))
    assert model_level_test(one).half == evidence.over_architectures(one.items()).half()


def test_many_models_are_sampled():
    test = model_level_test(dict.fromkeys(pairs_of(16), 0.2), draws=2000)
    assert test.p < 0.005 and test.smallest_p == 1 / 2001


def test_false_positives_stay_below_their_level():
    """Random model effects in both groups, no difference: where single scores are permuted, a third or more is called
    significant at 5 %, with the models as units at most 5 %."""
    generator, trials = np.random.default_rng(0), 200
    pairs = pairs_of(7)
    design = np.array([[float(model in pair) for model in "abcdefg"] for pair in pairs])
    by_model = by_score = 0
    for _ in range(trials):
        agree, disagree = (design @ generator.normal(size=(7, 2))).T
        test = model_level_test(dict(zip(pairs, agree - disagree)))
        by_model += test.p <= 0.05
        twice = np.concatenate([agree, agree, disagree, disagree])  # each pair twice, as in the original
        shuffled = generator.permuted(np.tile(twice, (200, 1)), axis=1).reshape(200, 2, -1).mean(axis=2)
        seen = abs(agree.mean() - disagree.mean())
        by_score += (np.abs(shuffled[:, 0] - shuffled[:, 1]) >= seen).mean() <= 0.05
    assert by_score / trials > 0.3
    assert by_model / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_difference_between_subgroups(tmp_path):
    write_subgroups(tmp_path)
    subgroups = results.load_subgroups(tmp_path)
    rows = subgroup_rows(subgroups, "jacc", 10)
    assert set(rows["k"]) == {10}
    test = subgroup_difference(rows[rows["eps"] == 2.0])
    assert test.mean == pytest.approx(0.5, abs=0.06) and test.p == 2 / 2**4 and test.models == 4
    assert subgroup_difference(rows[rows["pred_type"] == "agree"]).models == 0
    cka = subgroup_rows(subgroups, "cka")
    assert len(cka) == 6 * 2 * 2 - 1  # the score that could not be computed is left out


def test_both_orders_of_a_pair_count_once():
    rows = [
        ("a", "b", "agree", 0.9), ("b", "a", "agree", 0.7), ("a", "b", "disagree", 0.1), ("b", "a", "disagree", 0.3),
        ("a", "c", "agree", 0.5), ("a", "c", "disagree", 0.5), ("b", "c", "agree", 0.5), ("b", "c", "disagree", 0.5),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model1", "model2", "pred_type", "similarity"])
    assert subgroup_difference(table).mean == pytest.approx((0.6 + 0 + 0) / 3)
