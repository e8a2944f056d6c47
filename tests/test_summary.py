"""The one-page summary: its numbers are the long table's."""

import pandas as pd
import pytest
import synthetic_results

from univ import results
from univ.show import summary


@pytest.fixture
def page(tmp_path):
    synthetic_results.write_scores(tmp_path / "results")
    (tmp_path / "accuracy").mkdir()
    columns = "model,dataset,acc,loss,trained_eps,attack_lr,attack_eps,timestamp\n"
    rows = ["digits,98.25,0.1,eps0,0,0,t", "digits,40.5,1.0,eps0,0.1,1.0,t", "digits,41.5,1.0,eps0,0.1,1.0,t"]
    (tmp_path / "accuracy/vgg11_eps0.csv").write_text(columns + "".join(f"vgg11,{row}\n" for row in rows))
    return tmp_path, summary.summarize(tmp_path / "results", "digits", tmp_path / "accuracy", scale="Small.")


def cells(page, start):
    line = next(line for line in page.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_means_are_those_of_the_long_table(page):
    root, text = page
    table = results.load_long_table(root / "results", ["cka", "dis"])
    for label, measure, sense in (("CKA, inverted images", "cka", 1), ("agreement, inverted images", "dis", -1)):
        rows = table[(table.measure == measure) & (table.input == "inverted")]
        expected = rows.groupby("eps").score.mean()
        expected = expected if sense == 1 else 1 - expected
        assert cells(text, label)[1:] == [f"{value:.3f}" for value in expected]


def test_accuracies_take_the_last_of_repeated_evaluations(page):
    assert cells(page[1], "vgg11") == ["vgg11", "98.2", "41.5"]


def test_the_sentence_says_what_was_measured_whatever_it_is():
    rows = [("cka", 0.0, 0.7), ("cka", 2.0, 0.6), ("dis", 0.0, 0.1), ("dis", 2.0, 0.05)]
    scores = pd.DataFrame(rows, columns=["measure", "eps", "score"]).assign(input="standard")
    text = summary._conclusion(scores)
    assert "at eps 2 are less alike (CKA 0.600 against 0.700)" in text
    assert "more alike (agreement 0.950 against 0.900)" in text


def test_an_empty_folder_gives_a_page_without_tables(tmp_path):
    text = summary.summarize(tmp_path, "digits", tmp_path)
    assert text.startswith("# digits") and "|" not in text
