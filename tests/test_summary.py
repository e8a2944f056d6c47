"""The one-page summary: the report's tables as Markdown, and a sentence on what they say."""

import re

import pandas as pd
import pytest
from synthetic_results import CSV_OF_ACCURACIES, write_scores

from univ import results
from univ.show import summary, tables


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
    rows = table[(table["dataset"] == "digits") & (table["input"] == "inverted")].groupby("eps")["score"]
    expected = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(rows.mean(), rows.std())]
    line = re.findall(r"^\| CKA .*$", text, flags=re.MULTILINE)[1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["CKA", *expected, "12"]
    assert "sat6" not in text and text.startswith("# digits: are robust models more alike?\n\nSmall.")


def test_accuracies_take_the_last_of_repeated_evaluations(page):
    for part, share in (("clean", "98.2"), ("attacked at eps 1", "41.5")):
        assert re.search(rf"^\| digits: test part, {part} +\| vgg11 +\| {share} ", page[1], flags=re.MULTILINE)


def test_the_sentence_says_what_was_measured_whatever_it_is():
    rows = [("cka", 0.0, 0.7), ("cka", 2.0, 0.6), ("dis", 0.0, 0.1), ("dis", 2.0, 0.05)]
    scores = pd.DataFrame(rows, columns=["measure", "eps", "score"]).assign(input="standard", dataset="d", knn=None)
    text = summary.conclusion(tables.means(scores), "d")
    assert "at eps 2 are less alike (CKA 0.600 against 0.700)" in text
    assert "more alike (agreement 0.950 against 0.900)" in text


def test_names_are_escaped():
    names = pd.MultiIndex.from_tuples([("", "<b>x|y`$[*\x1b")], names=["group", "model"])
    text = summary.markdown(tables.Table("", pd.DataFrame({"n": [1.0]}, index=names)))
    assert text.splitlines()[-1].startswith(r"| \<b>x\|y\`\$\[\*\\x1b | 1.000 |")


def test_an_empty_folder_gives_a_page_without_tables(tmp_path):
    text = summary.summarize(tmp_path, "digits")
    assert text.startswith("# digits") and "|" not in text
