"""The page is sound and needs nothing else, tells how results were made, and says what a folder lacks."""

import html
import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_results import (
    CSV_OF_ACCURACIES,
    DIGITS_MODELS,
    matrix,
    sources_of_everything,
    write_probe_agreement,
    write_subgroups,
)

from univ import results
from univ.errors import InputError
from univ.results import ResultFile
from univ.show import evidence, prose, provenance, report
from univ.show.sources import Sources

ROOT = Path(__file__).resolve().parent.parent
README = """# Name

## Differences from the original

Some `--flags` and **bold** words.

```bash
# no heading
```

| where | *original* | here |
|---|---|---|
| `a`, k-NN | <b>old</b> | new \\| newer |

### Finer

See [the paper](https://example.org/paper?a=1&b=2), [a file](docs/file.md), ![a picture](https://example.org/x.png).

## Citation

None.
"""


class Page(HTMLParser):
    """Every start tag with its attributes, the text, and the end tags that do not fit."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.problems: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open += [tag] if tag not in ("meta", "link", "img", "br", "hr", "wbr") else []

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.text += data

    def all(self, attribute: str, tag: str = "") -> list[str]:
        return [found[attribute] for name, found in self.tags if attribute in found and tag in ("", name)]


def assert_sound(text: str) -> Page:
    """Well-formed, self-contained, and usable without seeing it."""
    page = Page(text)
    assert page.problems == []
    names = [tag for tag, _ in page.tags]
    ids, links = page.all("id"), page.all("href", "a")
    assert len(ids) == len(set(ids)) and "script" not in names
    inside = {link[1:] for link in links if link.startswith("#")} | set(page.all("aria-labelledby"))
    assert inside <= set(ids)
    assert all(link.startswith(("#", "https://")) for link in links)
    loaded = [*page.all("src"), *page.all("href", "link"), *page.all("srcset"), *page.all("data")]
    assert all(address.startswith("data:") for address in loaded) and not re.search(r"url\(|@import", text)
    assert all(page.all("alt", "img")) and len(page.all("alt", "img")) == names.count("img")
    assert names.count("table") == names.count("caption")
    headings = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    return page


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    (root / "README.md").write_text(README)
    return sources_of_everything(root)


@pytest.fixture(scope="module")
def page(sources):
    return report.build(sources, sources.results.parent / "README.md")


def test_the_page_is_sound_and_needs_nothing_else(page):
    found = assert_sound(page)
    sections = {"accuracy", "similarity", "agreement", "subgroups", "probes", "singles", "inverted", "made", "missing"}
    assert sections <= set(found.all("id"))
    sources = found.all("src", "img")
    assert {source.split(";")[0] for source in sources} == {"data:image/svg+xml", "data:image/png"}
    assert len(set(sources)) == len(sources)
    heat_map = next(picture for _, picture in found.tags if picture.get("alt", "").startswith("CKA of every pair"))
    alts = [picture["alt"] for _, picture in found.tags if "of the models on" in picture.get("alt", "")]
    assert sum(alt.startswith("CKA: a map") for alt in alts) == 2 and len(alts) == len(set(alts))
    points = float(re.search(r'width="([\d.]+)pt"', b64decode(heat_map["src"].partition("base64,")[2]).decode())[1])
    assert int(heat_map["width"]) == round(points * 96 / 72)
    assert "default-src 'none'; img-src data:" in page
    for name in ("viewport", "color-scheme", '<html lang="en">'):
        assert name in page


def test_cells_show_numbers_rounded_and_hold_them_in_full(page, sources):
    row = re.search(r'<tr><th scope="row">negative RTD</th>.*?</tr>', page, flags=re.DOTALL)[0]
    scores = sources.scores[(sources.scores["measure"] == "rtd") & (sources.scores["input"] == "standard")]
    rows = scores[(scores["eps"] == 0) & (scores["dataset"] == "digits")]
    half = evidence.over_architectures(zip(zip(rows["model1"], rows["model2"]), rows["score"])).half()
    scores = -rows["score"]
    cell = f'<td class="number"><data value="{scores.mean()}">{scores.mean():.3f}</data>'
    assert cell in row and f"<small>± {half:.3f}</small>" in row
    assert '<td class="number">6</td>' in row


def test_every_run_tells_its_arguments_commit_versions_and_files(page, sources):
    run = re.search(r"<details>\n<summary><code>func.py</code>.*?</details>", page, flags=re.DOTALL)[0]
    text = Page(run).text
    assert "digits, eps1, regular images, 2 results" in text
    assert "0123456789abcdef" in text and "torch 2.11.0" in text
    assert "<dt>model_dir</dt><dd><code>&lt;models&gt;</code></dd>" in run
    assert "data_path" not in text  # was not given
    assert "measure=norm, precision=fp32" in text and ">360<" in run
    assert set(re.findall(r"\S+\.csv", text)) == {
        f"{name}_eps1_10.csv" for name in ("norm_dis/standard/digits/norm_dis", "kappa/standard/digits/kappa")
    }
    everything = Page(page).text
    assert "jsd/standard/digits/jsd_eps1_10.csv: no JSON beside it" in everything
    assert "churn/standard/digits/churn_eps1_10.csv: does not fit its JSON" in everything
    assert all(path in everything for path in provenance.read(sources.results)["path"])


def test_what_is_missing_is_said(page):
    text = Page(page).text
    for line in (
        "no comparisons of ImageNet-1k, ImageNet-100, ImageNet-50, CIFAR-10",
        f"digits, standard: no {', '.join(sorted(DIGITS_MODELS))} in churn at eps 1; kappa at eps 1; norm at eps 1",
        "digits, standard: cka pools the tags 10, other",
        "1 result in the folder, but not in the tables",
        "procrustes/standard/digits/proc_norm_eps1_10.csv",
    ):
        assert line in text


# --- the section of the README --------------------------------------------------------------------------------------


def test_the_differences_are_repeated_and_load_nothing(page, tmp_path):
    section = page[page.index('<h2 id="differences">') : page.index("</main>")]
    text = Page(section).text
    assert "Some --flags" in text and "# no heading" in text and "Finer" in text and "Citation" not in text
    assert "<b>" not in section and "<b>old</b>" in text and "new | newer" in text
    assert 'href="https://example.org/paper?a=1&amp;b=2"' in section and section.count("href=") == 1
    assert "a picture" in text and "a file" in text
    assert 'data-column="original"' in section  # a row is read as a paragraph on a phone
    assert section.count('role="row"') == 2 and section.count("<thead>") == 1


@pytest.mark.parametrize(
    ("text", "found"), [("# A\n", ""), ("```\n# a\n```\n", None), ("## a ##\nx\n# b", "<p>x</p>\n"), ("b", None)]
)
def test_a_section_is_found_by_its_heading(text, found, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert prose.section(tmp_path / "README.md", "A", "what") == found


# --- other folders --------------------------------------------------------------------------------------------------


def write_one(folder: Path) -> None:
    scores = matrix([[1, 0.25], [0.25, 1]], "ab")
    results.write(folder, ResultFile("cka", "cifar10", "cifar10", "eps3", "0.1"), scores, {})


def write_published(folder: Path) -> None:
    """A CSV without its JSON."""
    write_one(folder)
    next(folder.rglob("*.json")).unlink()


def write_accuracies(folder: Path) -> None:
    (folder / "cifar10/accuracy").mkdir(parents=True)
    (folder / "cifar10/accuracy/all.csv").write_text(CSV_OF_ACCURACIES + "resnet18,cifar10,81.5,0.1,eps3,0,0,t\n")


@pytest.mark.parametrize(
    ("write", "shown"),
    [
        (write_one, "0.250"),
        (write_published, "1 result of which it is not known how they were made"),
        (write_accuracies, "81.5"),
        (write_subgroups, "differ"),
        (write_probe_agreement, "pairs of"),
    ],
)
def test_incomplete_results_give_a_page(tmp_path, write, shown):
    write(tmp_path)
    page = report.build(Sources(tmp_path, tmp_path / "data"))
    text = assert_sound(page).text
    assert "What is missing" in text and shown in text and "listed in the README" in text
    assert page == report.build(Sources(tmp_path, tmp_path / "data"))  # no date, no random names


def test_no_results(tmp_path):
    with pytest.raises(InputError, match=r"there is no results folder .*nowhere: name one with --results"):
        report.build(Sources(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no results in"):
        report.build(Sources(tmp_path))
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy/other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv lacks the columns model, dataset, acc, trained_eps, attack_eps"):
        report.build(Sources(tmp_path))


def test_the_script_writes_the_page_or_says_in_a_line_why_not(tmp_path, monkeypatch):
    script = ROOT / "scripts/report.py"
    words = [sys.executable, str(script), "--results", str(tmp_path)]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("report.py: error: no results in ") and refused.stderr.count("\n") == 1
    write_one(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(script))["main"](["--results", str(tmp_path), "--quiet", "--out", str(tmp_path / "a/b.html")])
    assert "CKA" in assert_sound((tmp_path / "a/b.html").read_text()).text


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
