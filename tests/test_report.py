"""The page shows the numbers of the results, needs nothing else, and says what a folder lacks."""

import html
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from html_page import assert_sound, parse
from synthetic_results import DIGITS_MODELS, write_inversions, write_probe_agreement, write_scores, write_subgroups

from univ import results
from univ.errors import InputError
from univ.measures.cards import SHOWN
from univ.results import ResultFile, made
from univ.show import differences, provenance, report
from univ.show.study import Study

ROOT = Path(__file__).resolve().parent.parent
README = (
    "# x\n\n## Differences from the original\n\n| where | original | here |\n|-|-|-|\n| k-NN | old | new |\n\n## y\n"
)
CSV_OF_ACCURACIES = "model,dataset,acc,loss,trained_eps,attack_lr,attack_eps,timestamp\n"


def matrix(values: list[list[float]], models: str = "abc") -> pd.DataFrame:
    return pd.DataFrame(values, index=list(models), columns=list(models))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Everything a folder can hold: two data sets, other kinds and preprocessings, unknown and damaged records."""
    root = tmp_path_factory.mktemp("study")
    found = root / "results"
    write_scores(found)
    write_scores(found, "sat6", models=("resnet18", "vgg16_bn"), eps=("eps0",), inputs=("standard",), ks=(10,))
    write_subgroups(found)
    write_probe_agreement(found)
    write_inversions(root / "data" / "digits" / "inverted", n=4)
    about = {"dataset": "digits", "models": "digits", "eps": "eps1", "exp": "10"}
    rep = about | {"center": True, "normalize": True}
    scores = matrix([[1, 0.25, math.nan], [0.25, 1, 0.75], [math.nan, 0.75, 1]])
    results.write(found, ResultFile("cka", **rep, adversarial=True), scores, {})
    results.write(found, ResultFile("cka", **rep | {"exp": "other"}), matrix([[1, 0.5], [0.5, 1]], "ab"), {})
    results.write(found, ResultFile("proc", **rep | {"center": False}), matrix([[0, 1], [1, 0]], "ab"), {})
    results.write(found, ResultFile("mag", **about, inverted=True), matrix([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), {})
    results.write(found, ResultFile("amb", **about), pd.DataFrame({"amb": [0.375]}), {})
    settings = {"measure": "norm", "inputs": {"a": {"n": 360}, "b": {"n": 360}}, "precision": "fp32"}
    record = {"arguments": {"func": ["norm"], "seed": 0, "data_path": None, "model_dir": "<models>"}}
    record |= {"commit": "0123456789abcdef", "versions": {"torch": "2.11.0"}}
    results.write(found, ResultFile("norm", **about), matrix([[0, 0.5], [0.5, 0]], "ab"), settings, record)
    results.write(found, ResultFile("kappa", **about), matrix([[1, 0.5], [0.5, 1]], "ab"), settings, record)
    damaged = results.write(found, ResultFile("churn", **about), matrix([[0, 0.5], [0.5, 0]], "ab"), {})
    damaged.write_text(damaged.read_text().replace("0.5", "0.6"))
    made.record_path(ResultFile("jsd", **about).path(found)).unlink()
    (found / "digits/accuracy").mkdir(parents=True)
    rows = "vgg11,digits,97.5,0.1,eps1,0,0,t\nvgg11,digits,91.25,0.3,eps1,0.5,1.0,t\nvgg11,digits,98.5,0.1,eps1,0,0,u\n"
    (found / "digits/accuracy/vgg11_eps1.csv").write_text(CSV_OF_ACCURACIES + rows)
    (root / "README.md").write_text(README)
    return Study(found, root / "data")


@pytest.fixture(scope="module")
def page(sources):
    return report.build(sources, sources.results.parent / "README.md")


@pytest.fixture(scope="module")
def parsed(page):
    return parse(page)


def test_the_page_is_sound_and_needs_nothing_else(page, parsed):
    assert_sound(parsed)
    assert not re.search(r"url\(|@import", page)
    assert {"accuracy", "similarity", "agreement", "subgroups", "probes", "singles", "inverted"} <= set(parsed.ids)
    kinds = {picture["src"].split(";")[0] for picture in parsed.pictures}
    assert kinds == {"data:image/svg+xml", "data:image/png"}
    heat_map = next(picture for picture in parsed.pictures if picture["alt"].startswith("CKA of every pair"))
    image = b64decode(heat_map["src"].partition("base64,")[2]).decode()
    points = float(re.search(r'width="([\d.]+)pt"', image)[1])
    assert int(heat_map["width"]) == round(points * 96 / 72)
    assert len({picture["src"] for picture in parsed.pictures}) == len(parsed.pictures)
    for name in ("viewport", "color-scheme", '<html lang="en">'):
        assert name in page


@pytest.mark.parametrize("kind", ["standard", "inverted"])
def test_means_are_those_of_the_long_table(sources, parsed, kind):
    """Every cell of the table against the scores themselves, and no setting left out."""
    scores = results.load_long_table(sources.results, settings=["knn"])
    scores = scores[scores["input"] == kind]
    shown = parsed.tables[f"means-{kind}"]
    names = {"digits": "digits", "sat6": "sat6"}
    checked = 0
    for (dataset, measure, knn, eps), rows in scores.groupby(["dataset", "measure", "knn", "eps"], dropna=False):
        similar = SHOWN[measure].similarity(rows["score"])
        label = SHOWN[measure].label + ("" if math.isnan(knn) else f" (k = {knn:g})")
        cell = shown[names[dataset], label][f"eps {eps:g}"]
        assert cell.value == pytest.approx(similar.mean(), rel=1e-12)
        assert cell.text.startswith(f"{similar.mean():.3f}")
        if len(rows) > 1:
            assert cell.text.endswith(f"± {np.std(similar, ddof=1):.3f}")
        checked += 1
    assert checked == sum(cell.value is not None for cells in shown.values() for cell in cells.values())
    pairs = 6 if kind == "standard" else 12
    assert shown["digits", "negative RTD"]["pairs"].text == str(pairs)


def test_adversarial_images_have_a_table_of_their_own(parsed):
    cell = parsed.tables["means-standard-adv"]["digits", "CKA"]["eps 1"]
    assert cell.value == pytest.approx(0.5)  # of 0.25 and 0.75; the third pair has no score


def test_agreement_lies_beside_its_bounds(sources, parsed):
    scores = results.load_long_table(sources.results, ["dis"])
    bounds = sources.bounds
    shown = parsed.tables["agreement-table"]
    assert len(shown) == len(scores.groupby(["dataset", "input", "eps"])) == 7
    for row in bounds.itertuples():
        rows = scores[(scores["dataset"] == row.dataset) & (scores["input"] == row.input) & (scores["eps"] == row.eps)]
        images = {"standard": "regular images", "inverted": "inverted images"}[row.input]
        cells = shown[f"{row.dataset}, {images}", f"eps {row.eps:g}"]
        assert cells["agreement"].value == pytest.approx(1 - rows["score"].mean(), rel=1e-12)
        assert cells["lower"].value == pytest.approx(row.lower, rel=1e-12)
        assert cells["upper"].value == pytest.approx(row.upper, rel=1e-12)
        assert cells["pairs"].text == str(len(rows))


def test_accuracies_on_the_compared_images_and_on_the_test_part(sources, parsed):
    shown = parsed.tables["accuracy-table"]
    recorded = results.load_accuracies(sources.results)
    for row in recorded[recorded["input"] == "standard"].itertuples():
        cell = shown[f"{row.dataset}: compared images", row.model][f"eps {row.eps:g}"]
        assert cell.value == pytest.approx(100 * row.accuracy)
        assert cell.text == f"{100 * row.accuracy:.1f}"
    assert shown["digits: test part, clean", "vgg11"]["eps 1"].value == 98.5  # the last evaluation
    assert shown["digits: test part, attacked at eps 1", "vgg11"]["eps 1"].value == 91.25
    assert shown["digits: test part, clean", "vgg11"]["eps 0"].text == "–"
    inverted = recorded[(recorded["input"] == "inverted") & (recorded["eps"] == 2)]
    own = inverted["source"] == inverted["model"]
    transfer = parsed.tables["transfer-table"]
    for name, rows in (("the model inverted", inverted[own]), ("the other models", inverted[~own])):
        assert transfer["digits", name]["eps 2"].value == pytest.approx(100 * rows["accuracy"].mean())


def test_subgroups_are_compared_over_the_pairs_that_have_both(sources, parsed):
    rows = results.load_subgroups(sources.results)
    shown = parsed.tables["subgroup-table"]
    assert len(shown) == 2 * 5  # two radii; cka, proc, rtd, jacc at two k
    for metric, label, k in (("cka", "CKA", None), ("proc", "ProcrustesSim", None), ("jacc", "Jaccard (k = 50)", 50)):
        here = rows[(rows["metric"] == metric) & (rows["eps"] == 0)]
        here = here[here["k"] == k] if k else here
        similar = SHOWN[metric].similarity
        both = here.pivot_table(index=["model1", "model2"], columns="pred_type", values="score").dropna()
        cells = shown["digits, regular images, eps 0", label]
        assert cells["agree"].value == pytest.approx(similar(both["agree"]).mean())
        assert cells["differ"].value == pytest.approx(similar(both["disagree"]).mean())
        assert cells["difference"].value == pytest.approx(cells["agree"].value - cells["differ"].value)
        assert cells["pairs"].text == ("5" if metric == "cka" else "6")  # one score is missing
        test = differences.subgroup_difference(differences.subgroup_rows(here, metric, k))
        assert cells["p"].value == test.p
    assert "4 models cannot give a p below 0.125" in parsed.text


def test_subgroups_without_a_pair_are_named_as_missing(sources):
    rows = results.load_subgroups(sources.results)
    rows.loc[(rows["metric"] == "rtd") & (rows["pred_type"] == "disagree"), "score"] = math.nan
    without = [found for found in report.subgroup_tests(rows) if not found.pairs]
    assert [(found.label, found.eps) for found in without] == [("negative RTD", 0), ("negative RTD", 2)]
    assert math.isnan(without[0].test.p)
    scores = results.load_long_table(sources.results, settings=["knn"])
    missing = report._missing(sources, scores, results.load_accuracies(sources.results), rows, pd.DataFrame())
    assert "subgroups, negative RTD: no pair has a score in both groups (digits, regular images, eps 0; " in missing
    assert "no agreement of probes" in missing


def test_probes_and_classifiers(sources, parsed):
    probes = results.load_probe_agreement(sources.results)
    shown = parsed.tables["probe-table"]
    between = probes[probes["arch_1"] != probes["arch_2"]]["agreement"]
    cells = shown["digits", "probes on eps 2 representations"]
    assert [cells[name].value for name in ("mean", "least", "most")] == pytest.approx(
        [between.mean(), between.min(), between.max()]
    )
    assert cells["pairs"].text == str(len(between)) == "24"
    scores = results.load_long_table(sources.results, ["dis"])
    robust = scores[(scores["dataset"] == "digits") & (scores["input"] == "standard") & (scores["eps"] == 2)]
    assert shown["digits", "classifiers eps 2"]["mean"].value == pytest.approx(1 - robust["score"].mean())


def test_scores_of_single_models_and_of_the_set(parsed):
    shown = parsed.tables["singles-table"]
    own = "digits: magnitude, own inverted images"
    assert [shown[own, model]["eps 1"].value for model in "abc"] == [1, 5, 9]
    assert shown["digits: ambiguity, regular images", "all models"]["eps 1"].value == 0.375


def test_every_run_tells_its_arguments_commit_versions_and_files(page, parsed, sources):
    run = re.search(r"<details>\n<summary><code>func.py</code>.*?</details>", page, flags=re.DOTALL)[0]
    assert "digits, eps1, regular images, 2 results" in run
    assert "0123456789abcdef" in run and "torch 2.11.0" in run
    assert "<dt>model_dir</dt><dd><code>&lt;models&gt;</code></dd>" in run
    assert "data_path" not in run  # was not given
    of_run = next(
        rows for name, rows in parsed.tables.items() if ("", "norm_dis/standard/digits/norm_dis_eps1_10.csv") in rows
    )
    cells = of_run["", "norm_dis/standard/digits/norm_dis_eps1_10.csv"]
    assert cells["images"].text == "360"
    assert cells["settings"].text == "measure=norm, precision=fp32"
    assert set(of_run) == {
        ("", f"{place}_eps1_10.csv") for place in ("norm_dis/standard/digits/norm_dis", "kappa/standard/digits/kappa")
    }
    assert "jsd/standard/digits/jsd_eps1_10.csv</code>: no JSON beside it" in page
    assert "churn/standard/digits/churn_eps1_10.csv</code>: does not fit its JSON" in page
    named = {key[1] for name, rows in parsed.tables.items() if name.startswith("run-") for key in rows}
    unknown = {"jsd/standard/digits/jsd_eps1_10.csv", "churn/standard/digits/churn_eps1_10.csv"}
    assert named | unknown == {
        str(path.relative_to(sources.results)) for path in provenance.result_csvs(sources.results)
    }


def test_what_is_missing_is_said(parsed):
    for line in (
        "no comparisons of ImageNet-1k, ImageNet-100, ImageNet-50, CIFAR-10",
        f"digits, standard: no {', '.join(sorted(DIGITS_MODELS))} in churn at eps 1; kappa at eps 1; norm at eps 1",
        "digits, standard: cka pools the tags 10, other",
        "1 result in the folder, but not in the tables",
        "procrustes/standard/digits/proc_norm_eps1_10.csv",
    ):
        assert line in parsed.text


def test_a_tag_can_be_chosen(sources):
    scores = Study(sources.results, sources.data, exp="other").scores
    assert report.means(scores)["mean"].tolist() == [0.5]
    accuracies = pd.DataFrame({"exp": ["10", "", "other"]})
    chosen = Study(sources.results, exp="10.0").of_tag(accuracies)
    assert chosen["exp"].tolist() == ["10", ""]  # an evaluation of the test part has no tag


def test_the_readme_s_differences_are_repeated(parsed, sources):
    assert "k-NN" in parsed.text and "old" in parsed.text
    assert "listed in the README" in report._differences(sources.results / "README.md")


def test_a_measure_the_figures_do_not_know_is_shown_as_it_is(tmp_path):
    file = ResultFile("mine", "digits", "digits", "eps1")
    results.write(tmp_path, file, matrix([[7, 3], [3, 7]], "ab"), {})
    shown = parse(report.build(Study(tmp_path))).tables["means-standard"]
    assert shown["digits", "mine (raw score)"]["eps 1"].value == 3


def write_one(folder: Path) -> None:
    scores = matrix([[1, 0.25], [0.25, 1]], "ab")
    results.write(folder, ResultFile("cka", "cifar10", "cifar10", "eps3", "0.1"), scores, {})


def write_published(folder: Path) -> None:
    """CSVs without a JSON."""
    write_one(folder)
    for path in folder.rglob("*.json"):
        path.unlink()


def write_accuracies(folder: Path, name: str = "cifar10/accuracy/all.csv") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    row = "resnet18,cifar10,81.5,0.1,eps3,0,0,t\n"
    (folder / name).write_text(CSV_OF_ACCURACIES + row)


def test_accuracies_are_found_where_the_readme_puts_them(tmp_path):
    write_published(tmp_path)
    write_accuracies(tmp_path, "accuracy.csv")
    write_accuracies(tmp_path)
    named = (tmp_path / "accuracy.csv",)  # which is found too: read once
    found = Study(tmp_path, evaluated=named).evaluations
    assert found[["model", "accuracy", "eps"]].values.tolist() == [["resnet18", 0.815, 3.0]]
    parsed = parse(report.build(Study(tmp_path, tmp_path / "data")))
    assert parsed.tables["accuracy-table"]["CIFAR-10: test part, clean", "resnet18"]["eps 3"].value == 81.5


@pytest.mark.parametrize(
    "write", [write_one, write_published, write_accuracies, write_subgroups, write_probe_agreement]
)
def test_incomplete_results_give_a_page(tmp_path, write):
    write(tmp_path)
    page = report.build(Study(tmp_path, tmp_path / "data"))
    parsed = parse(page)
    assert_sound(parsed)
    assert "What is missing" in parsed.text
    if write is write_one:
        assert parsed.tables["means-standard"]["CIFAR-10", "CKA"]["eps 3"].value == 0.25
        assert page == report.build(Study(tmp_path, tmp_path / "data"))  # no date, no random names
    if write is write_published:
        assert "1 result of which it is not known how they were made" in parsed.text
    if write is write_accuracies:
        assert parsed.tables["accuracy-table"]["CIFAR-10: test part, clean", "resnet18"]["eps 3"].value == 81.5


def test_no_results(tmp_path):
    with pytest.raises(InputError, match=r"there is no results folder .*nowhere: name one with --results"):
        report.build(Study(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no results in"):
        report.build(Study(tmp_path))
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy/other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv lacks the columns model, dataset, acc, trained_eps, attack_eps"):
        report.build(Study(tmp_path))


def test_the_script_writes_the_page_or_says_in_a_line_why_not(tmp_path, monkeypatch):
    script = ROOT / "scripts/report.py"
    words = [sys.executable, str(script), "--results", str(tmp_path)]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("report.py: error: no results in ") and refused.stderr.count("\n") == 1
    write_one(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(script))["main"](["--results", str(tmp_path), "--quiet", "--out", str(tmp_path / "a/b.html")])
    assert_sound(parse((tmp_path / "a/b.html").read_text()))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"),
    # it asks for nothing of its own, so a closed network is no reason to fail
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><title>-</title><script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach((part) => { part.open = true; });
    const root = page.documentElement;
    found.push({asked: frame.width, width: root.scrollWidth, room: root.clientWidth,
      pictures: page.images.length, broken: [...page.images].filter((image) => !image.naturalWidth).length,
      small: [...page.querySelectorAll("p, td, th, dd, li")].filter((part) => part.checkVisibility() &&
        parseFloat(page.defaultView.getComputedStyle(part).fontSize) < 14).length});
  }
  document.title = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_in_a_browser_nothing_is_wider_than_a_phone_nor_said_on_the_console(page, tmp_path):
    def browse(address: Path, *flags: str) -> subprocess.CompletedProcess:
        words = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, address.as_uri()]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)

    # the page holds no script and its policy forbids any: a page around it looks at it
    frames = [f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>' for width in (360, 1200)]
    around = tmp_path / "around.html"
    around.write_text(MEASURE + "".join(frames))
    seen = browse(around, "--dump-dom")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", seen.stdout)[1]))
    assert [int(frame["asked"]) for frame in found] == [360, 1200]
    for frame in found:
        assert frame["width"] <= frame["room"] <= int(frame["asked"])
        assert frame["pictures"] >= 12 and frame["broken"] == 0
        assert frame["small"] == 0
    alone = tmp_path / "report.html"
    alone.write_text(page)
    printed = browse(alone, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "CONSOLE" not in seen.stderr + printed.stderr
