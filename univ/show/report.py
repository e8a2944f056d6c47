"""A results folder -> one HTML page: tables, figures, how each result was made, what is missing.

The page (`report.html.jinja`) needs no other file and no network. Its numbers come through `univ.show.tables`, its
pictures from `univ.show.plots`, so they are those of the figures and notebooks.
"""

import base64
import io
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from univ import runs
from univ.errors import InputError, plain
from univ.measures.cards import SHOWN
from univ.show import plots, prose, provenance, quantities, summary, tables
from univ.show.plots import INPUT_LABELS
from univ.show.sources import Sources
from univ.show.tables import Table, dataset_label

DIFFERENCES = "Differences from the original"  # the section of the documentation that the page repeats
KINDS = {"adv": "adversarial images", "sample": "inverted images pooled over models", "base": "permuted images"}


def build(sources: Sources, readme: Path | None = None) -> str:
    """The page.

    Args:
        readme: Markdown file whose section on differences from the original is repeated.

    Raises:
        InputError: there is no results folder, or nothing in it.
    """
    if not sources.results.is_dir():
        raise InputError(f"there is no results folder {sources.results}: name one with --results")
    made = provenance.read(sources.results)
    if made.empty and sources.evaluations.empty:
        scripts = "rep.py, func.py, subgroup_sim.py or compare_probes.py"
        raise InputError(f"no results in {sources.results}: it holds no CSV of {scripts}")
    of_runs = provenance.runs_of(made[made["problem"] == ""])
    unknown = made[made["problem"] != ""]
    software: Counter[tuple[str, str]] = Counter()
    for run in of_runs:
        software[run.commit, run.versions] += len(run.files)
    found, tests = tables.means(sources.scores, sources.accuracies), tables.subgroup_tests(sources.subgroups)
    changes = tables.rises(sources.scores, sources.accuracies, sources.margin)
    page = _template().render(
        lead=_lead(sources, found, changes, len(made)),
        limits=summary.limits(sources.scores) if len(found) else "",
        accuracy=tables.accuracy(sources),
        transfer=tables.transfer(sources),
        similarity={
            kind: tables.similarity(f"Similarity on {INPUT_LABELS[kind]}.", rows, changes[changes["input"] == kind])
            for kind, rows in found.groupby("input", sort=False)
        },
        several_k=found[found["measure"] == "jacc"].groupby("input")["knn"].nunique() > 1,
        pairs={kind: _maps(quantities.one_k(sources.scores, sources.knn), kind) for kind in INPUT_LABELS},
        others=_others(sources),
        agreement=tables.agreement(sources, found),
        subgroups=tables.subgroups(tests),
        probes=tables.probes(sources),
        probe_accuracies=tables.probe_accuracies(sources),
        singles=tables.singles(sources),
        figures=_figures(sources),
        software=software,
        runs=[_run(run) for run in of_runs],
        unknown=[_code(path) + f": {_shown(problem)}" for path, problem in zip(unknown["path"], unknown["problem"])],
        missing=tables.missing(sources, found, tests),
        pooled=quantities.pooled(quantities.one_k(sources.scores, sources.knn)),
        left_out=sources.left_out(),
        differences=prose.section(readme, DIFFERENCES, "What the original does, and what is done here."),
        differences_title=DIFFERENCES,
        images=INPUT_LABELS,
        commit=runs.commit(),
        root=sources.results,
    )
    return page.lstrip()


# --- parts ----------------------------------------------------------------------------------------------------------


def _lead(sources: Sources, found: pd.DataFrame, changes: pd.DataFrame, files: int) -> dict[str, str]:
    """What the folder holds, and what may be said of similarity over the radii."""
    scores = sources.scores
    datasets = quantities.order_datasets(scores["dataset"])
    items = {
        "Data": ", ".join(map(dataset_label, datasets)),
        "Models": ", ".join(sorted({*scores["model1"], *scores["model2"]})),
        "Radii of training (eps)": ", ".join(f"{eps:g}" for eps in sorted(set(scores["eps"]))),
        "Holds": f"{counted(files, 'result file')}, {counted(len(scores), 'comparison')} of two models",
    }
    for dataset, kind in itertools.product(datasets, INPUT_LABELS):
        of_kind = (table[table["input"] == kind] for table in (found, changes))
        items[f"{dataset_label(dataset)}, {INPUT_LABELS[kind]}"] = summary.conclusion(*of_kind, dataset)
    return {term: what for term, what in items.items() if what}


def _others(sources: Sources) -> list[tuple[str, str, Table]]:
    """Adversarial, pooled and permuted images: id, heading and table of each."""
    parts = []
    for kind, scores in sources.others.items():
        what = " and ".join(KINDS[word] for word in kind.split("+"))
        for inputs, rows in tables.means(scores).groupby("input"):
            table = tables.similarity(f"Mean similarity, {what}.", rows)
            name = f"means-{inputs}-{kind.replace('+', '-')}"
            parts.append((name, f"{INPUT_LABELS[inputs].capitalize()}: {what}", table))
    return parts


def _run(run: provenance.Run) -> tuple[provenance.Run, str, Table]:
    """A run, what it is about, and its files."""
    words = [*(INPUT_LABELS.get(word, word) for word in run.about), counted(len(run.files), "result")]
    cells = run.files.assign(group="").rename(columns={"path": "file"}).set_index(["group", "file"])
    return (
        run,
        ", ".join(words),
        Table("Files below the results folder.", cells[["images", "settings"]], words=("settings",)),
    )


# --- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: `source` is a data URI, width and height are CSS pixels; a wide one never shrinks."""

    source: str
    width: int
    height: int
    caption: str
    wide: bool = False


def _figures(sources: Sources) -> dict[str, Picture]:
    """Every figure that the results allow, by name; the page says what those it knows show."""
    return {
        name: _picture(figure, name.replace("_", " ").capitalize() + ".")
        for notebook, figures in plots.FIGURES.items()
        if notebook != "model_maps"  # stand with the pairs, see `_maps`
        for name, figure in figures(sources)
        if figure is not None
    }


def _maps(scores: pd.DataFrame, kind: str) -> list[Picture]:
    """Every pair of models as a heat map, and the models as points of a plane, by every measure that figures show."""
    drawn = []
    for dataset, measure in itertools.product(quantities.order_datasets(scores["dataset"]), SHOWN):
        label = SHOWN[measure].label[0].upper() + SHOWN[measure].label[1:]
        where = f"on {INPUT_LABELS[kind]}, {dataset_label(dataset)}"
        figure = plots.heat_maps(scores, measure, dataset, kind)
        if figure is not None:
            drawn.append(_picture(figure, f"{label} of every pair of models {where}.", wide=True))
        figure = plots.model_map(scores, measure, dataset, kind)
        if figure is not None:
            drawn.append(_picture(figure, f"{label}: a map of the models {where}."))
    return drawn


def _picture(figure: Figure, caption: str, *, wide: bool = False) -> Picture:
    """The figure as SVG, or as PNG where it is a grid of images; the same results give the same bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context(plots.STYLE | {"svg.hashsalt": "univ"}):
        if any(axes.images for axes in figure.axes) and not wide:
            media = "image/png"
            figure.savefig(file, format="png", dpi=150)
            inches = figure.get_size_inches()
        else:
            media = "image/svg+xml"
            # the layout of heat maps, whose panels are square, leaves too little room for long names of models
            box = {"bbox_inches": "tight", "pad_inches": 0.05} if wide else {}
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, **box)
            size = re.search(rb'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"', file.getvalue())
            inches = float(size[1]) / 72, float(size[2]) / 72
    width, height = (round(96 * length) for length in inches)
    source = f"data:{media};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(source, width, height, caption, wide)


# --- the page -------------------------------------------------------------------------------------------------------


def counted(amount: int, what: str) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{amount:,} {what}" if amount == 1 else f"{amount:,} {what}s"


def _shown(value: object) -> object:
    """What a template puts out: HTML as it is, all else without what steers a terminal or the order of letters."""
    return value if isinstance(value, Markup) else plain(value, keep="\n\t")


def _code(value: object) -> Markup:
    return Markup("<code>{}</code>").format(_shown(value))


def _breakable(value: object) -> Markup:
    """A path or name that breaks after / and _ where a line is full."""
    return Markup(re.sub(r"([/_])(?=.)", r"\1<wbr>", str(escape(_shown(value)))))


def _template() -> jinja2.Template:
    """Names come from files and from the net: everything that is not HTML of ours is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "code": _code, "counted": counted}
    return environment.get_template("report.html.jinja")
