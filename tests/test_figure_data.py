"""Similarities, agreement bounds, the model-level test, and what the figures list as missing."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_results import DIGITS_MODELS, write_inversions, write_probe_agreement, write_scores, write_subgroups

from univ import results
from univ.data import open_images
from univ.show import quantities as figure_data


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    write_scores(root)
    write_subgroups(root)
    write_probe_agreement(root)
    return root


@pytest.mark.parametrize(
    ("measure", "score", "similarity"),
    [("cka", 0.3, 0.3), ("proc", 0.5, 0.75), ("rtd", 4.0, -4.0), ("dis", 0.1, 0.9), ("jsd", math.log(2), 0.0)],
)
def test_similarities_by_hand(measure, score, similarity):
    table = pd.DataFrame({"measure": [measure, "unknown"], "score": [score, 1.0]})
    shown = figure_data.with_similarity(table)
    assert shown["similarity"].tolist() == pytest.approx([similarity])


def test_agreement_bounds_by_hand():
    # two classes: independent errors agree where both are right or both wrong: 0.9 * 0.8 + 0.1 * 0.2
    lower, upper = figure_data.agreement_bounds(0.8, 0.9, 2)
    assert lower == pytest.approx(0.74)
    # worsening 0.9 to 0.8 by flipping a share s: 0.9 (1 - s) + 0.1 s = 0.8, so s = 1/8
    assert upper == pytest.approx(7 / 8)
    # four classes: both right 0.72; both wrong, 0.02, and then on the same of three classes: 0.02 / 3
    assert figure_data.agreement_bounds(0.9, 0.8, 4)[0] == pytest.approx(0.72 + 0.02 / 3)
    assert figure_data.agreement_bounds(0.7, 0.7, 10)[1] == 1
    assert math.isnan(figure_data.agreement_bounds(0.1, 0.05, 10)[1])


def test_bounds_hold_for_simulated_classifiers():
    generator = np.random.default_rng(0)
    n, num_classes = 200_000, 5

    def worsened(preds, share):
        other = (preds + generator.integers(1, num_classes, n)) % num_classes
        return np.where(generator.random(n) < share, other, preds)

    labels = generator.integers(0, num_classes, n)
    first, second = worsened(labels, 0.1), worsened(labels, 0.3)
    copy = worsened(first, 0.25)
    accuracy = lambda preds: (preds == labels).mean()  # noqa: E731
    lower, _ = figure_data.agreement_bounds(accuracy(first), accuracy(second), num_classes)
    assert (first == second).mean() == pytest.approx(lower, abs=0.005)
    _, upper = figure_data.agreement_bounds(accuracy(first), accuracy(copy), num_classes)
    assert (first == copy).mean() == pytest.approx(upper, abs=0.005)


def test_mean_bounds_average_over_pairs():
    about = {"num_classes": 2, "eps": 0.0, "dataset": "d", "exp": "0"}
    regular = [{"source": "", "model": m, "accuracy": a, "input": "standard"} for m, a in zip("abc", (0.9, 0.8, 0.8))]
    on_b = [{"source": "b", "model": m, "accuracy": a, "input": "inverted"} for m, a in zip("abc", (0.9, 0.8, 0.8))]
    table = figure_data.mean_bounds(pd.DataFrame([row | about for row in regular + on_b])).set_index("input")
    assert table.loc["standard", "lower"] == pytest.approx((0.74 + 0.74 + 0.68) / 3)
    assert table.loc["inverted", "lower"] == pytest.approx((0.74 + 0.68) / 2)  # b with a, b with c


def test_recorded_accuracies_come_before_evaluations(tmp_path, scores):
    csv = tmp_path / "accuracy.csv"
    rows = [("a", "cifar10", 10.0, "0", 0), ("vgg11", "digits", 50.0, "eps1", 0), ("vgg11", "digits", 40.0, "eps1", 1)]
    rows += [("a", "cifar10", 93.0, "0", 0)]  # later than the first, so this one counts
    pd.DataFrame(rows, columns=["model", "dataset", "acc", "trained_eps", "attack_eps"]).to_csv(csv, index=False)
    accuracies = figure_data.all_accuracies(scores, [csv])
    evaluated = accuracies[accuracies["dataset"] == "cifar10"]
    assert evaluated[["model", "accuracy", "num_classes", "eps"]].values.tolist() == [["a", 0.93, 10, 0.0]]
    digits = accuracies[(accuracies["dataset"] == "digits") & (accuracies["input"] == "standard")]
    assert len(digits) == 12 and not (digits["accuracy"] == 0.5).any()


def test_missing_settings_are_listed(scores):
    table = results.load_long_table(scores)
    table = table[~((table["measure"] == "rtd") & (table["eps"] == 2.0) & (table["input"] == "inverted"))]
    lines = figure_data.missing(table, ["cka", "rtd"])
    assert lines[-1] == "digits, inverted: rtd at eps 2"
    assert lines[:-1] == [f"{name}: no results" for name in figure_data.studied()]
    assert figure_data.missing(results.load_long_table(scores / "empty"), ["cka"])[0] == "imagenet: no results"


def test_one_k(scores):
    table = results.load_long_table(scores, settings=["knn"])
    assert set(figure_data.one_k(table, 100)["knn"].dropna()) == {100}
    assert set(figure_data.one_k(table, 7)["knn"].dropna()) == {10}
    assert len(figure_data.pooled(table)) == 2 and not figure_data.pooled(figure_data.one_k(table, 10))
    published = table.assign(knn=np.nan)
    assert len(figure_data.one_k(published, 100)) == len(published)


# ------------------------------------------------------------------------------------------------- test of difference


def pairs_of(models: int) -> list[tuple[str, str]]:
    return list(itertools.combinations("abcdefghijklmnopqrstuvwxyz"[:models], 2))


def test_a_constant_difference_is_as_significant_as_models_allow():
    test = figure_data.model_level_test(dict.fromkeys(pairs_of(8), 0.2))
    assert test.mean == pytest.approx(0.2) and test.models == 8
    assert test.p == pytest.approx(2 / 2**8) == test.smallest_p


def test_three_models_by_hand():
    # d_ab = u_a + u_b and so on: shares 1, 2 and 4; the mean difference is 2/3 of their sum, 14/3
    test = figure_data.model_level_test({("a", "b"): 3.0, ("a", "c"): 5.0, ("b", "c"): 6.0})
    assert test.mean == pytest.approx(14 / 3)
    assert test.p == pytest.approx(2 / 8)  # only +++ and --- reach it
    test = figure_data.model_level_test({("a", "b"): 0.0, ("a", "c"): 0.0, ("b", "c"): 1.0})
    # shares -1/2, 1/2, 1/2: of the eight sums +-1/2 (six times) and +-3/2 (twice) all reach 1/2
    assert test.p == 1


def test_too_few_models_have_no_p_value():
    test = figure_data.model_level_test({("a", "b"): 0.5})
    assert test.mean == 0.5 and math.isnan(test.p)
    assert math.isnan(figure_data.model_level_test({}).p)


def test_missing_pairs_are_left_out():
    differences = dict.fromkeys(pairs_of(6), 0.2) | {("a", "b"): math.nan}
    test = figure_data.model_level_test(differences)
    assert test.mean == pytest.approx(0.2) and test.p == pytest.approx(2 / 2**6)


def test_many_models_are_sampled():
    test = figure_data.model_level_test(dict.fromkeys(pairs_of(16), 0.2), draws=2000)
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
        test = figure_data.model_level_test(dict(zip(pairs, agree - disagree)))
        by_model += test.p <= 0.05
        twice = np.concatenate([agree, agree, disagree, disagree])  # each pair twice, as in the original
        shuffled = generator.permuted(np.tile(twice, (200, 1)), axis=1).reshape(200, 2, -1).mean(axis=2)
        seen = abs(agree.mean() - disagree.mean())
        by_score += (np.abs(shuffled[:, 0] - shuffled[:, 1]) >= seen).mean() <= 0.05
    assert by_score / trials > 0.3
    assert by_model / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_difference_between_subgroups(scores):
    subgroups = results.load_subgroups(scores)
    rows = figure_data.subgroup_rows(subgroups, "jacc", 10)
    assert set(rows["k"]) == {10}
    test = figure_data.subgroup_difference(rows[rows["eps"] == 2.0])
    assert test.mean == pytest.approx(0.5, abs=0.06) and test.p == 2 / 2**4 and test.models == 4
    assert figure_data.subgroup_difference(rows[rows["pred_type"] == "agree"]).models == 0
    cka = figure_data.subgroup_rows(subgroups, "cka")
    assert len(cka) == 6 * 2 * 2 - 1  # the score that could not be computed is left out


def test_both_orders_of_a_pair_count_once():
    rows = [
        ("a", "b", "agree", 0.9), ("b", "a", "agree", 0.7), ("a", "b", "disagree", 0.1), ("b", "a", "disagree", 0.3),
        ("a", "c", "agree", 0.5), ("a", "c", "disagree", 0.5), ("b", "c", "agree", 0.5), ("b", "c", "disagree", 0.5),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model1", "model2", "pred_type", "similarity"])
    assert figure_data.subgroup_difference(table).mean == pytest.approx((0.6 + 0 + 0) / 3)


def test_classifiers_beside_probes(scores):
    table, probes = results.load_long_table(scores), results.load_probe_agreement(scores)
    shown = figure_data.classifier_and_probe_agreement(table, probes, "digits")
    sizes = shown.groupby("group", sort=False).size()
    assert sizes.tolist() == [6, 6, 24, 4]  # 4 models; 8 probes: 28 pairs, 4 of them on one model's representations
    assert list(sizes.index[:2]) == ["classifiers\neps 0", "classifiers\neps 2"]
    fewer = figure_data.classifier_and_probe_agreement(table, probes[probes["arch_2"] == "resnet10"], "digits")
    assert fewer.groupby("group", sort=False).size().iloc[0] == 1  # only the probed pair of architectures
    empty = figure_data.classifier_and_probe_agreement(table[:0], probes[:0], "digits")
    assert empty.empty


# ------------------------------------------------------------------------------------------------- inverted images


def test_inversions_of_different_classes(tmp_path):
    write_inversions(tmp_path, eps=("eps0", "eps1", "eps2"))
    (tmp_path / "vgg11_eps2.pt").unlink()
    shown = figure_data.load_inversions("digits", folder=tmp_path, rows=4)
    assert shown.targets.shape == (4, 3, 32, 32)
    assert set(shown.inverted) == {(m, e) for m in DIGITS_MODELS for e in (0.0, 2.0)} - {("vgg11", 2.0)}
    assert shown.missing == ["vgg11 at eps 2"]
    images = open_images("digits")
    where = [next(i for i in range(12) if torch.equal(images[i][0], target)) for target in shown.targets]
    assert len({int(images.labels[i]) for i in where}) == 4
    assert torch.equal(shown.seeds[0], images[111 - where[0]][0])


def test_inversions_by_index_files(tmp_path):
    from univ.data.indices import write_indices

    write_inversions(tmp_path, models=["vgg11"], eps=["eps0"])
    (tmp_path / "vgg11_eps0.csv").unlink()
    assert "seeds unknown" in figure_data.load_inversions("digits", folder=tmp_path).missing[0]
    write_indices(tmp_path / "t.csv", torch.arange(12))
    write_indices(tmp_path / "s.csv", torch.arange(12).flip(0) + 100)
    shown = figure_data.load_inversions(
        "digits", folder=tmp_path, rows=20, target_indices=tmp_path / "t.csv", seed_indices=tmp_path / "s.csv"
    )
    assert len(shown.targets) == 12 and not shown.missing


def test_an_inversion_of_other_targets_is_left_out(tmp_path):
    write_inversions(tmp_path, models=["resnet10", "vgg11"], eps=["eps0"])
    table = pd.read_csv(tmp_path / "vgg11_eps0.csv")
    table.assign(target_index=table["target_index"] + 1).to_csv(tmp_path / "vgg11_eps0.csv", index=False)
    shown = figure_data.load_inversions("digits", folder=tmp_path)
    assert set(shown.inverted) == {("resnet10", 0.0)}
    assert shown.missing == ["vgg11_eps0.pt: other targets or seeds than resnet10_eps0.pt"]


def test_nothing_to_show(tmp_path):
    shown = figure_data.load_inversions("digits", tmp_path / "missing")
    assert not shown.inverted and "no inverted images" in shown.missing[0]
    write_inversions(tmp_path, models=["vgg11"], eps=["eps0"])
    shown = figure_data.load_inversions("cifar10", folder=tmp_path, data_path=tmp_path / "nowhere")
    assert not shown.inverted and shown.missing
