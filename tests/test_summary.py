"""The one-page summary: the report's tables as Markdown, and a sentence on what they say."""

import itertools
import math
import re

import pandas as pd
import pytest
from synthetic_results import CSV_OF_ACCURACIES, write_scores

from univ import results
from univ.show import evidence, quantities, summary, tables


@pytest.fixture
def page(tmp_path):
    write_scores(tmp_path / "results")
    write_scores(tmp_path / "results", "sat6", eps=["eps0"], inputs=["standard"], ks=[10])
    (tmp_path / "results/accuracy/digits").mkdir(parents=True)
    rows = ["digits,98.25,0.1,eps0,0,0,t", "digits,40.5,1.0,eps0,0.1,1.0,t", "digits,41.5,1.0,eps0,0.1,1.0,t"]
    rows = "".join(f"vgg11,{row}\n" for row in rows)
    (tmp_path / "results/accuracy/digits/vgg11_eps0.csv").write_text(CSV_OF_ACCURACIES + rows)
    return tmp_path, summary.summarize(tmp_path / "results", "digits", scale="Small.")


def test_means_are_those_of_the_long_table_and_of_one_data_set(page):
    root, text = page
    table = results.load_long_table(root / "results", ["cka"])
    rows = table[(table["dataset"] == "digits") & (table["input"] == "inverted")]
    halves = [
        evidence.over_architectures(zip(zip(of_eps["model1"], of_eps["model2"]), of_eps["score"])).half()
        for _, of_eps in rows.groupby("eps")
    ]
    expected = [f"{mean:.3f} ± {half:.3f}" for mean, half in zip(rows.groupby("eps")["score"].mean(), halves)]
    line = re.findall(r"^\| CKA .*$", text, flags=re.MULTILINE)[1]
    trend = quantities.eps_trend(rows)
    rise = [f"{trend.mean:.3f} ± {trend.high - trend.mean:.3f}"]
    shown = [cell.strip() for cell in line.strip("|").split("|")]
    assert shown[:6] == ["CKA", *expected, "12", *rise] and shown[7] == "rises" and float(shown[6]) > trend.p
    assert "sat6" not in text and text.startswith("# digits: are robust models more alike?\n\nSmall.")


def test_accuracies_take_the_last_of_repeated_evaluations(page):
    for part, share in (("clean", "98.2"), ("attacked at eps 1", "41.5")):
        assert re.search(rf"^\| digits: test part, {part} +\| vgg11 +\| {share} ", page[1], flags=re.MULTILINE)


def scores_of(rise: float, models: str = "abcd") -> pd.DataFrame:
    """CKA rises by about `rise` over eps 0 to 2, agreement does not change."""
    rows = []
    for number, (first, second) in enumerate(itertools.combinations(models, 2)):
        for eps, measure in itertools.product((0.0, 2.0), ("cka", "dis")):
            score = 0.6 + eps / 2 * (rise + 0.01 * number) if measure == "cka" else 0.1 + 1e-5 * eps * number
            rows.append((first, second, score, measure, eps, "d", "standard", "0", math.nan, 360))
    return pd.DataFrame(rows, columns=[*results.LONG_COLUMNS, "knn", "images"])


@pytest.mark.parametrize(("rise", "words"), [(0.1, "rises"), (-0.2, "falls"), (-0.025, "shows no clear change")])
def test_the_sentence_says_what_was_measured_whatever_it_is(rise, words):
    scores = scores_of(rise)
    trend = quantities.eps_trend(scores[scores["measure"] == "cka"])
    text = summary.conclusion(tables.means(scores), tables.rises(scores), "d")
    interval = f"change {trend.mean:+.3f}, 95 % interval {trend.low:+.3f} to {trend.high:+.3f}, corrected p "
    means = f"0.600 at eps 0, {0.6 + trend.mean:.3f} at 2"
    assert text.startswith(f"On regular images CKA {words} ({means}; {interval}")
    assert "), and agreement of predictions " in text
    assert "equivalent within ±0.02 (0.900 at eps 0, 0.900 at 2; change -0.000" in text


def test_without_an_interval_nothing_is_called_more_alike():
    scores = scores_of(0.3, "ab")
    text = summary.conclusion(tables.means(scores), tables.rises(scores), "d")
    assert "CKA changed as shown, by how much beyond chance is not known (0.600 at eps 0, 0.900 at 2; " in text
    assert "change +0.300, 2 architectures: no interval without one of them)" in text


def test_what_scores_cannot_show():
    said = summary.limits(scores_of(0.1))
    assert said.startswith("What this cannot show: what other architectures do than these 4 (with fewer than 8")
    assert "as each was trained once" in said and "with more images than 360" in said
    assert "than this one" in said


def test_names_are_escaped():
    names = pd.MultiIndex.from_tuples([("", "<b>x|y`$[*\x1b")], names=["group", "model"])
    text = summary.markdown(tables.Table("", pd.DataFrame({"n": [1.0]}, index=names)))
    assert text.splitlines()[-1].startswith(r"| \<b>x\|y\`\$\[\*\\x1b | 1.000 |")


def test_an_empty_folder_gives_a_page_without_tables(tmp_path):
    text = summary.summarize(tmp_path, "digits")
    assert text.startswith("# digits") and "|" not in text
