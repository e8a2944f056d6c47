"""The tables of report and summary hold the numbers of the results, and no setting is left out."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_results import CSV_OF_ACCURACIES, sources_of_everything

from univ.measures.cards import SHOWN
from univ.results import LONG_COLUMNS
from univ.show import differences, evidence, quantities, summary, tables
from univ.show.sources import Sources
from univ.show.tables import Table

IMAGES = {"standard": "regular images", "inverted": "inverted images"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return sources_of_everything(tmp_path_factory.mktemp("study"))


def cell(table: Table, group: str, name: str, column: str) -> object:
    plain = table.cells.rename(columns=lambda text: text.replace("\N{NO-BREAK SPACE}", " "))
    plain.index = [(a, b.replace("\N{NO-BREAK SPACE}", " ")) for a, b in plain.index]
    assert plain.index.is_unique
    return plain.loc[[(group, name)], column].item()


@pytest.mark.parametrize("kind", ["standard", "inverted"])
def test_means_are_those_of_the_long_table(sources, kind):
    found = tables.means(sources.scores)
    found = found[found["input"] == kind]
    table = tables.similarity("", found)
    rows = sources.scores[sources.scores["input"] == kind]
    settings = rows.groupby(["dataset", "measure", "knn", "eps"], dropna=False)
    for (dataset, measure, knn, eps), scores in settings["score"]:
        label = SHOWN[measure].label + ("" if math.isnan(knn) else f" (k = {knn:g})")
        similar = SHOWN[measure].similarity(scores)
        assert cell(table, dataset, label, f"eps {eps:g}") == pytest.approx(similar.mean(), rel=1e-12)
    assert len(settings) == table.cells.drop(columns="pairs").notna().sum().sum()
    assert cell(table, "digits", "negative RTD", "pairs") == ("6" if kind == "standard" else "12")
    of_cka = rows[(rows["measure"] == "cka") & (rows["dataset"] == "digits") & (rows["exp"] == "10")].groupby("eps")
    spread = found[(found["measure"] == "cka") & (found["dataset"] == "digits")]["spread"].tolist()
    assert spread == pytest.approx(of_cka["score"].std().tolist(), rel=1e-12) or kind == "standard"  # eps 1: two tags
    for place, (_, of_eps) in enumerate(of_cka):
        if kind == "inverted" or place != 1:
            pairs = zip(zip(of_eps["model1"], of_eps["model2"]), of_eps["score"])
            half = evidence.over_architectures(pairs).half()
            assert table.spread.loc[("digits", "CKA")].iloc[place] == pytest.approx(half, rel=1e-12)


def test_other_kinds_of_images_and_unknown_measures_have_means_too(sources):
    found = tables.means(sources.others["adv"])  # of 0.25 and 0.75; the third pair has no score
    assert found[["mean", "n", "failed"]].values.tolist() == [[0.5, 2, 1]]
    rows = {"measure": "mine", "score": [7.0, 3.0], "dataset": "digits", "input": "standard", "eps": 1.0, "knn": 5}
    rows |= {"model1": "a", "model2": ["b", "c"]}
    table = tables.similarity("", tables.means(pd.DataFrame(rows)))
    assert cell(table, "digits", "mine (raw score)", "eps 1") == 5


def test_agreement_lies_beside_its_bounds(sources):
    table = tables.agreement(sources, tables.means(sources.scores))
    disagreement = sources.scores[sources.scores["measure"] == "dis"].groupby(["dataset", "input", "eps"])["score"]
    assert len(table.cells) == len(disagreement) == 7
    bounds = sources.bounds.set_index(["dataset", "input", "eps"])
    for (dataset, kind, eps), scores in disagreement:
        row = f"{dataset}, {IMAGES[kind]}", f"eps {eps:g}"
        assert cell(table, *row, "agreement") == pytest.approx(1 - scores.mean(), rel=1e-12)
        for side in ("lower", "upper"):
            assert cell(table, *row, side) == pytest.approx(bounds.at[(dataset, kind, eps), side], rel=1e-12)
        assert cell(table, *row, "pairs") == len(scores)


def test_accuracies_on_the_compared_images_and_on_the_test_part(sources):
    table, recorded = tables.accuracy(sources), sources.accuracies
    for row in recorded[recorded["input"] == "standard"].itertuples():
        shown = cell(table, f"{row.dataset}: compared images", row.model, f"eps {row.eps:g}")
        assert shown == pytest.approx(100 * row.accuracy)
    assert cell(table, "digits: test part, clean", "vgg11", "eps 1") == 98.5  # the last evaluation
    assert cell(table, "digits: test part, attacked at eps 1", "vgg11", "eps 1") == 91.25
    assert math.isnan(cell(table, "digits: test part, clean", "vgg11", "eps 0"))
    inverted = recorded[(recorded["input"] == "inverted") & (recorded["eps"] == 2)]
    own = inverted["source"] == inverted["model"]
    for name, rows in (("the model inverted", inverted[own]), ("the other models", inverted[~own])):
        shown = cell(tables.transfer(sources), "digits", name, "eps 2")
        assert shown == pytest.approx(100 * rows["accuracy"].mean())


def test_subgroups_are_compared_over_the_pairs_that_have_both(sources):
    rows = sources.subgroups
    table = tables.subgroups(tables.subgroup_tests(rows))
    assert len(table.cells) == 2 * 5  # two radii; cka, proc, rtd, jacc at two k
    for metric, label, k in (("cka", "CKA", None), ("proc", "ProcrustesSim", None), ("jacc", "Jaccard (k = 50)", 50)):
        of_metric = rows[(rows["metric"] == metric) & (rows["eps"] == 0)]
        of_metric = of_metric[of_metric["k"] == k] if k else of_metric
        both = of_metric.pivot_table(index=["model1", "model2"], columns="pred_type", values="score").dropna()
        agree, disagree = (SHOWN[metric].similarity(both[group]).mean() for group in ("agree", "disagree"))
        shown = [cell(table, "digits, regular images, eps 0", label, column) for column in table.cells]
        test = differences.subgroup_difference(differences.subgroup_rows(of_metric, metric, k))
        p = min(1, 5 * test.p)  # Holm: the smallest that 4 models can give, 0.125, or more, of five
        assert shown[:4] == pytest.approx([agree, disagree, agree - disagree, p])
        assert table.spread.loc[("digits, regular images, eps 0", table.cells.index[0][1])].notna().all()
        assert shown[4] == (5 if metric == "cka" else 6)  # one score is missing
    assert "4 architectures cannot give a p below 0.125" in table.note


def test_subgroups_without_a_pair_are_named_as_missing(sources):
    rows = sources.subgroups.copy()
    rows.loc[(rows["metric"] == "rtd") & (rows["pred_type"] == "disagree"), "score"] = math.nan
    tests = tables.subgroup_tests(rows)
    without = tests[tests["pairs"] == 0]
    assert without["measure"].tolist() == ["negative RTD"] * 2 and without["p"].isna().all()
    lines = tables.missing(sources, tables.means(sources.scores), tests)
    places = "digits, regular images, eps 0; digits, regular images, eps 2"
    assert f"subgroups, negative RTD: no pair has a score in both groups ({places})" in lines


def test_probes_and_classifiers(sources):
    table = tables.probes(sources)
    between = sources.probes[sources.probes["arch_1"] != sources.probes["arch_2"]]["agreement"]
    shown = [cell(table, "digits", "probes on eps 2 representations", column) for column in table.cells]
    assert shown == pytest.approx([between.mean(), between.min(), between.max(), 24])
    scores = sources.scores[(sources.scores["dataset"] == "digits") & (sources.scores["input"] == "standard")]
    robust = scores[(scores["measure"] == "dis") & (scores["eps"] == 2)]["score"]
    assert cell(table, "digits", "classifiers eps 2", "mean") == pytest.approx(1 - robust.mean())


def test_scores_of_single_models_and_of_the_set(sources):
    table = tables.singles(sources)
    own = [cell(table, "digits: magnitude, own inverted images", model, "eps 1") for model in "abc"]
    assert own == [1, 5, 9]
    assert cell(table, "digits: ambiguity, regular images", "all models", "eps 1") == 0.375


def test_a_tag_or_a_data_set_can_be_chosen(sources):
    other = Sources(sources.results, sources.data, exp="other")
    assert tables.means(other.scores)["mean"].tolist() == [0.5]
    assert set(Sources(sources.results, exp="10.0").accuracies["exp"]) == {"10"}
    assert set(Sources(sources.results, exp="10").evaluations["model"]) == {"vgg11"}  # the test part has no tag
    assert set(Sources(sources.results, dataset="sat6").scores["dataset"]) == {"sat6"}


def test_accuracies_are_found_where_the_readme_puts_them(tmp_path):
    (tmp_path / "cifar10/accuracy").mkdir(parents=True)
    for name in ("accuracy.csv", "cifar10/accuracy/all.csv"):
        (tmp_path / name).write_text(CSV_OF_ACCURACIES + "resnet18,cifar10,81.5,0.1,eps3,0,0,t\n")
    sources = Sources(tmp_path, evaluated=(tmp_path / "accuracy.csv",))  # named too: read once
    assert sources.evaluations[["model", "accuracy", "eps"]].values.tolist() == [["resnet18", 0.815, 3.0]]
    assert cell(tables.accuracy(sources), "CIFAR-10: test part, clean", "resnet18", "eps 3") == 81.5


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (1 / 3, math.nan, "0.333"),
        (-19.3912, 0.25, "-19.391 ± 0.250"),
        (1234.56, 0.25, "1234.6 ± 0.2"),
        (math.nan, math.nan, "–"),
        ("word", math.nan, "word"),
        ("", math.nan, "–"),
        (12345, math.nan, "12,345"),
    ],
)
def test_a_number_is_rounded_for_reading_and_kept_in_full(value, spread, text):
    names = pd.MultiIndex.from_tuples([("group", "row")], names=["group", "name"])
    one, other = (pd.DataFrame({"n": [what]}, index=names, dtype=object) for what in (value, spread))
    shown = Table("", one, spread=other.astype(float)).groups()["group"][0][1][0]
    assert " ± ".join(filter(None, (shown.text, shown.spread))) == text
    assert shown.value == (value if isinstance(value, float) and not np.isnan(value) else None)


def test_rises_are_corrected_for_the_measures_of_a_data_set_and_kind_of_images(sources):
    changes = tables.rises(sources.scores, margin=0.5)
    assert len(changes) == 2 * 8 and set(changes["dataset"]) == {"digits"}  # sat6 has one eps
    scores = sources.scores[
        (sources.scores["input"] == "inverted") & (sources.scores["exp"].isin(["10", "100", "500"]))
    ]
    of_kind = changes[changes["input"] == "inverted"]
    trends = {}
    for measure, knn in zip(of_kind["measure"], of_kind["knn"]):
        rows = scores[(scores["measure"] == measure) & ((scores["knn"] == knn) | math.isnan(knn))]
        trends[measure, knn] = quantities.eps_trend(rows)
    corrected = evidence.holm([trend.p for trend in trends.values()])
    assert of_kind["p"].tolist() == pytest.approx(corrected)
    assert of_kind[["rise", "low", "high"]].values.tolist() == pytest.approx(
        np.array([trend[:3] for trend in trends.values()])
    )
    rtd = changes[changes["measure"] == "rtd"]
    assert rtd["equivalence_p"].isna().all() and changes["equivalence_p"].notna().sum() == 14
    assert changes.loc[changes["measure"] == "dis", "verdict"].tolist() == ["rises, equivalent within ±0.5"] * 2


def with_seeds(change: float) -> pd.DataFrame:
    """Two seeds of each of four architectures: alike within an architecture, ever more alike between."""
    models = [f"{name}@{seed}" for name in "abcd" for seed in range(2)]
    rows = []
    for first, second in itertools.combinations(models, 2):
        for eps in (0.0, 1.0):
            noise = 0.001 * (ord(first[0]) + ord(second[0]) - 196) * eps
            score = 0.9 if first[0] == second[0] else 0.5 + change * eps + noise
            rows.append((first, second, score, "cka", eps, "d", "standard", "0", math.nan, 1000.0))
    return pd.DataFrame(rows, columns=[*LONG_COLUMNS, "knn", "images"])


def test_similarity_between_seeds_stands_beside_that_between_architectures():
    scores = with_seeds(0.3)
    found, changes = tables.means(scores), tables.rises(scores)
    table = tables.similarity("", found, changes)
    assert cell(table, "d", "CKA", "eps 0") == pytest.approx(0.5) and cell(table, "d", "CKA", "verdict") == "rises"
    within = "CKA, seeds of one architecture"
    assert cell(table, "d", within, "eps 0") == pytest.approx(0.9) and cell(table, "d", within, "pairs") == "4"
    assert cell(table, "d", within, "verdict") == "" and math.isnan(cell(table, "d", within, "p"))
    assert cell(table, "d", "CKA", "pairs") == "24" and "each was trained once" not in summary.limits(scores)
    assert cell(tables.similarity("", found, tables.rises(with_seeds(0.0))), "d", "CKA", "verdict") == (
        "equivalent within ±0.02"
    )


def test_scores_of_few_errors_are_undefined_and_it_is_said():
    scores = with_seeds(0.1).assign(measure="norm")
    models = sorted({*scores["model1"], *scores["model2"]})
    about = {"source": "", "num_classes": 10, "dataset": "d", "input": "standard", "exp": "0"}
    rows = [{"model": model, "eps": eps, "accuracy": 0.9, **about} for model in models for eps in (0.0, 1.0)]
    rows[0]["accuracy"] = 0.981  # a@0 makes 19 errors of 1000 at eps 0
    found = tables.means(scores, pd.DataFrame(rows))
    between = found[~found["within"]]
    assert between["few"].tolist() == [6, 0] and between["n"].tolist() == [18, 24] and (between["failed"] == 0).all()
    note = tables.similarity("", found).note
    assert "is undefined for pairs with a model of fewer than 20 errors (6 of 24 at eps 0)" in note
    assert tables.means(scores.assign(measure="dis"), pd.DataFrame(rows))["few"].sum() == 0


def test_what_is_not_comparable_is_said():
    scores = with_seeds(0.1).assign(measure="proc")
    scores.loc[scores["eps"] == 1, "images"] = 500.0
    note = tables.similarity("", tables.means(scores)).note
    assert "Not comparable between numbers of images (500 and 1,000 here), on which they depend: ProcrustesSim" in note
    assert "Not comparable" not in tables.similarity("", tables.means(scores.assign(measure="cka"))).note
    several = pd.concat([scores.assign(measure="jacc", knn=k, images=500.0) for k in (10, 50)])
    assert "Scores of different k are not comparable" in tables.similarity("", tables.means(several)).note
