"""scores.csv and evidence.csv: every score with what lies beside it, and the numbers of the tables in full."""

import numpy as np
import pandas as pd
import pytest
from synthetic_results import matrix, sources_of_everything

from univ import results
from univ.results import ResultFile
from univ.show import tables, tidy
from univ.show.sources import Sources

ABOUT = {"dataset": "digits", "models": "digits", "eps": "eps1", "exp": "10", "center": True, "normalize": True}
SETTINGS = {"inputs": {"all": {"n": 360}}, "knn": 10}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return sources_of_everything(tmp_path_factory.mktemp("study"))


def test_every_score_is_there_once_with_the_long_tables_number(sources):
    table = tidy.scores(sources)
    assert list(table) == tidy.SCORE_COLUMNS
    assert table["kind"].value_counts().to_dict() == {"plain": len(sources.scores), "adv": 3}
    keys = ["dataset", "input", "exp", "measure", "eps", "model1", "model2"]
    both = sources.scores.merge(table[table["kind"] == "plain"], on=keys, validate="1:1")
    assert len(both) == len(sources.scores) and both["score_x"].equals(both["score_y"])
    rtd = table[table["measure"] == "rtd"]
    assert (rtd["similarity"] == -rtd["score"]).all() and table["low"].isna().all()


def test_intervals_p_values_and_what_is_comparable_stand_beside_the_scores(tmp_path):
    scores, file = matrix([[1, 0.5, 0.25], [0.5, 1, 0.75], [0.25, 0.75, 1]]), ResultFile("jacc", **ABOUT)
    results.write(tmp_path, file, scores, SETTINGS, {"widths": {"a": 64, "b": 512, "c": 64}})
    rows = [(a, b, scores.at[b, a]) for a in "abc" for b in "abc" if a != b]
    beside = pd.DataFrame(rows, columns=["model1", "model2", "score"])
    results.write_companion(
        tmp_path, file, "ci", beside.assign(low=beside["score"] - 0.1, high=0.9), {**SETTINGS, "level": 0.9}
    )
    base = ResultFile("jacc", baseline=True, **ABOUT)
    null = matrix([[0.1] * 3] * 3)
    results.write(tmp_path, base, null, SETTINGS, singles=null.map(lambda cell: [cell]))
    stale = beside.assign(calibrated=0.5)
    stale.loc[0, "score"] = 0.6  # made with another score of a and b
    results.write_companion(tmp_path, base, "pvalue", beside.assign(p_value=0.005), SETTINGS)
    results.write_companion(tmp_path, base, "calibrated", stale, SETTINGS)
    table = tidy.scores(Sources(tmp_path)).set_index(["model1", "model2"])
    assert table.index.tolist() == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table["low"].tolist() == pytest.approx([0.4, 0.15, 0.65]) and (table["high"] == 0.9).all()
    assert (table["level"] == 0.9).all() and (table["p_value"] == 0.005).all() and (table["baseline"] == 0.1).all()
    assert table["calibrated"].isna().tolist() == [True, False, False]
    assert table["width2"].tolist() == [512, 64, 64] and (table["images"] == 360).all() and (table["k"] == 10).all()
    assert table["comparable"].tolist() == [
        "360 images, k = 10, width 64 and 512",
        "360 images, k = 10, width 64",
        "360 images, k = 10, width 64 and 512",
    ]


def test_evidence_has_the_numbers_of_the_tables(sources):
    table = tidy.evidence(sources)
    assert list(table) == tidy.EVIDENCE_COLUMNS
    found, changes = tables.means(sources.scores), tables.rises(sources.scores)
    means, rises = (table[table["quantity"] == name] for name in ("mean", "rise"))
    assert np.array_equal(means["estimate"], found["mean"], equal_nan=True)
    assert np.array_equal(means["high"], found["high"], equal_nan=True)
    assert rises["estimate"].tolist() == changes["rise"].tolist() and rises["p"].tolist() == changes["p"].tolist()
    assert rises["eps"].isna().all() and rises["verdict"].tolist() == changes["verdict"].tolist()


def test_an_empty_folder_gives_headings(tmp_path):
    sources = Sources(tmp_path)
    assert list(tidy.scores(sources)) == tidy.SCORE_COLUMNS and tidy.scores(sources).empty
    assert list(tidy.evidence(sources)) == tidy.EVIDENCE_COLUMNS and tidy.evidence(sources).empty
