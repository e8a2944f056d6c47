"""A results folder -> one HTML page: tables, figures, how each result was made, what is missing.

The page needs no other file and no network. Its numbers come through `univ.results` and `univ.show.quantities`, its
pictures from `univ.show.plots`, so they are those of the figures and notebooks.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from univ import results, runs
from univ.errors import InputError
from univ.measures.cards import SHOWN, find_card
from univ.show import differences, plots, quantities
from univ.show.markup import (
    NOTHING,
    Row,
    Section,
    bullets,
    code,
    collapsed,
    definitions,
    markdown,
    markdown_section,
    number,
    page,
    picture,
    table,
    text,
)
from univ.show.plots import INPUT_LABELS
from univ.show.provenance import Made, Run, result_csvs, runs_of
from univ.show.quantities import FUNCTIONAL, REPRESENTATIONAL, dataset_label
from univ.show.study import Study

TITLE = "How alike are the models?"
DIFFERENCES = "Differences from the original"
"""The README's section that the page repeats: what is decided otherwise than in the study's own code is told once."""

NBSP = "\N{NO-BREAK SPACE}"

KINDS = {"adv": "adversarial images", "sample": "inverted images pooled over models", "base": "permuted images"}


def build(sources: Study, readme: Path | None = None) -> str:
    """The page.

    Args:
        sources: the folders of results and data, the tag and the number of neighbours, as for the figures.
        readme: file whose section on differences from the original is repeated.

    Raises:
        InputError: there is no results folder, or nothing in it.
    """
    root = sources.results
    if not root.is_dir():
        raise InputError(f"there is no results folder {root}: name one with --results")
    made = [Made.read(path, root) for path in result_csvs(root)]
    evaluations = sources.evaluations
    if not made and evaluations.empty:
        scripts = "rep.py, func.py, subgroup_sim.py or compare_probes.py"
        raise InputError(f"no results in {root}: it holds no CSV of {scripts}")
    scores, subgroups, probes = sources.scores, sources.subgroups, sources.probes
    accuracies = sources.accuracies
    figures = _draw(sources)
    missing = _missing(sources, scores, accuracies, subgroups, probes)
    parts = [
        Section("accuracy", "Accuracy", _accuracy(accuracies, evaluations)),
        Section("similarity", "Similarity of representations and predictions", _similarity(sources, scores, figures)),
        Section("agreement", "Agreement and its bounds", _agreement(sources, scores, figures)),
        Section("subgroups", "Where predictions agree and where they differ", _subgroups(subgroups, figures)),
        Section("probes", "Linear probes", _probes(root, scores, probes, figures)),
        Section("singles", "Single models and sets of models", _singles(sources)),
        Section("inverted", "Inverted images", "".join(figures.pop("inv_img_example", {}).values())),
        Section("further", "Further figures", "".join(itertools.chain(*(part.values() for part in figures.values())))),
        Section("made", "How each result was made", _provenance(made)),
        Section("missing", "What is missing", missing),
        Section("differences", DIFFERENCES, _differences(readme)),
    ]
    parts = [part for part in parts if part.body]
    foot = f"<p>Drawn by scripts/report.py at commit {code(runs.commit())} from the folder {code(root)}.</p>\n"
    return page(TITLE, _lead(scores, made), parts, foot)


# ---------------------------------------------------------------------------------------------------- names


def _dataset(name: str) -> str:
    base, _, models = name.partition("/")
    return f"{dataset_label(base)}, models of {dataset_label(models)}" if models else dataset_label(base)


def _measure(key: str, knn: float = math.nan) -> str:
    label = SHOWN[key].label if key in SHOWN else f"{key} (raw score)"
    return label if math.isnan(knn) else f"{label} (k{NBSP}={NBSP}{knn:g})"


def _eps(radii: Iterable[float]) -> list[str]:
    return [f"eps{NBSP}{eps:g}" for eps in radii]


def _count(amount: int, what: str) -> str:
    return f"{amount:,} {what}" if amount == 1 else f"{amount:,} {what}s"


def _range(counts: Iterable[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _paragraphs(*sentences: str) -> str:
    return "".join(f"<p>{text(sentence)}</p>\n" for sentence in sentences if sentence)


# ---------------------------------------------------------------------------------------------------- summary


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean similarity over pairs of models, one row per setting.

    Args:
        scores: long table with the column `knn`; self-comparisons are not in it. A measure that the figures do not
            know is taken as it is.

    Returns:
        Columns input, dataset, measure, knn (nan for measures without neighbours), eps, mean, spread (standard
        deviation, nan for one pair), n (comparisons), failed (comparisons without a score).
    """
    keys = ["input", "dataset", "measure", "knn", "eps"]
    known = scores["measure"].isin(list(SHOWN))
    similar = quantities.with_similarity(scores)
    others = scores[~known].assign(similarity=scores.loc[~known, "score"])
    both = pd.concat([part for part in (similar, others) if len(part)] or [similar])
    both["knn"] = both["knn"].astype(float)
    both.loc[~both["measure"].map(lambda key: find_card(key).neighbors).astype(bool), "knn"] = math.nan
    groups = both.groupby(keys, dropna=False)["similarity"]
    found = groups.agg(mean="mean", spread="std", n="count", failed=lambda values: values.isna().sum()).reset_index()
    order = {key: place for place, key in enumerate([*REPRESENTATIONAL, *SHOWN])}
    found["place"] = [list(order).index(key) if key in order else len(order) for key in found["measure"]]
    return found.sort_values(["input", "dataset", "place", "measure", "knn", "eps"]).drop(columns="place")


def _lead(scores: pd.DataFrame, made: Sequence[Made]) -> str:
    """What the folder holds, and the similarity at the smallest and the largest radius."""
    models = sorted({*scores["model1"], *scores["model2"]})
    items = {
        "Data": text(", ".join(map(_dataset, quantities.order_datasets(scores["dataset"])))),
        "Models": text(", ".join(models)),
        "Radii of training (eps)": text(", ".join(f"{eps:g}" for eps in sorted(set(scores["eps"])))),
        "Holds": f"{_count(len(made), 'result file')}, {_count(len(scores), 'comparison')} of two models",
    }
    found = means(scores)
    for dataset, kind in itertools.product(quantities.order_datasets(scores["dataset"]), INPUT_LABELS):
        rows = found[(found["dataset"] == dataset) & (found["input"] == kind)]
        changes = []
        for measure in ("cka", "dis"):
            of_measure = rows[rows["measure"] == measure].dropna(subset="mean")
            if len(of_measure) > 1:
                first, last = of_measure.iloc[0], of_measure.iloc[-1]
                ends = f"{first['mean']:.3f} at eps {first['eps']:g}, {last['mean']:.3f} at eps {last['eps']:g}"
                changes.append(f"mean {SHOWN[measure].label} {ends}")
        if changes:
            items[f"{_dataset(dataset)}, {INPUT_LABELS[kind]}"] = text("; ".join(changes))
    return definitions({term: what for term, what in items.items() if what})


# ---------------------------------------------------------------------------------------------------- accuracy


def _percent(share: float) -> str:
    return number(100 * share, digits=1)


def _by_eps(rows: pd.DataFrame, names: str, order: Iterable[str], radii: Sequence[float]) -> list[Row]:
    """A row per name, a cell per radius, from the column `accuracy` (averaged where there are several)."""
    shares = rows.groupby([names, "eps"])["accuracy"].mean().to_dict()
    there = set(rows[names])
    return [
        Row(name, [_percent(shares.get((name, eps), math.nan)) for eps in radii]) for name in order if name in there
    ]


def _accuracy(accuracies: pd.DataFrame, evaluations: pd.DataFrame) -> str:
    """Per model and radius: on the compared images, on the test part clean and attacked, on inverted images."""
    regular = accuracies[accuracies["input"] == "standard"]
    models = list(dict.fromkeys([*regular["model"], *evaluations["model"]]))
    radii = sorted({*regular["eps"], *evaluations["eps"]})
    groups: dict[str, list[Row]] = {}
    for dataset in quantities.order_datasets([*regular["dataset"], *evaluations["dataset"]]):
        rows = regular[regular["dataset"] == dataset]
        if len(rows):
            groups[f"{_dataset(dataset)}: compared images"] = _by_eps(rows, "model", models, radii)
        rows = evaluations[evaluations["dataset"] == dataset]
        for attack, of_attack in rows.groupby("attack_eps"):
            how = "clean" if attack == 0 else f"attacked at eps {attack:g}"
            groups[f"{_dataset(dataset)}: test part, {how}"] = _by_eps(of_attack, "model", models, radii)
    body = ""
    if groups:
        title = "Accuracy in percent, by the radius that a model was trained with."
        body += table("accuracy-table", title, ["model", *_eps(radii)], groups)
    inverted = accuracies[accuracies["input"] == "inverted"]
    if len(inverted):
        radii = sorted(set(inverted["eps"]))
        who = ("the model inverted", "the other models")
        own = inverted["source"] == inverted["model"]
        inverted = inverted.assign(who=own.map({True: who[0], False: who[1]}))
        groups = {
            _dataset(dataset): _by_eps(inverted[inverted["dataset"] == dataset], "who", who, radii)
            for dataset in quantities.order_datasets(inverted["dataset"])
        }
        title = "Inverted images classified as their target's class, in percent."
        note = "Where other models see the target too, they respond to what the image was made to show one model."
        body += table("transfer-table", title, ["classified by", *_eps(radii)], groups, note=note)
    return body


# ---------------------------------------------------------------------------------------------------- similarity


def _table_of_means(name: str, title: str, found: pd.DataFrame) -> str:
    """Means by data set and measure (rows) and radius (columns)."""
    radii = sorted(set(found["eps"]))
    groups: dict[str, list[Row]] = {}
    for dataset in quantities.order_datasets(found["dataset"]):
        rows = groups.setdefault(_dataset(dataset), [])
        of_dataset = found[found["dataset"] == dataset]
        for (measure, knn), of_measure in of_dataset.groupby(["measure", "knn"], dropna=False, sort=False):
            by_eps = of_measure.set_index("eps")
            cells = [
                number(by_eps.at[eps, "mean"], spread=by_eps.at[eps, "spread"]) if eps in by_eps.index else NOTHING
                for eps in radii
            ]
            rows.append(Row(_measure(measure, knn), [*cells, _range(of_measure["n"])]))
    note = "Larger is more alike; the mean over pairs of models, ± the standard deviation between pairs."
    return table(name, title, ["measure", *_eps(radii), "pairs"], groups, note=note)


def _similarity(sources: Study, scores: pd.DataFrame, figures: "Figures") -> str:
    """Means of all measures: the study's kind of comparison first, then adversarial, pooled and permuted images."""
    body = ""
    drawn = figures.get("data_effect", {})
    by_k = figures.pop("jaccard_apx", {})
    found = means(scores)
    for kind, label in INPUT_LABELS.items():
        rows = found[found["input"] == kind]
        if rows.empty:
            continue
        body += f'<h3 id="similarity-{kind}">On {label}</h3>\n'
        body += _table_of_means(f"means-{kind}", f"Mean similarity on {label}.", rows)
        body += drawn.pop(f"similarity_{kind}", "")
        if rows.loc[rows["measure"] == "jacc", "knn"].nunique() > 1:  # of one k it would repeat a panel
            body += by_k.pop(f"jaccard_by_k_{kind}", "")
        body += _pairs(scores[scores["input"] == kind], kind)
    for kind in other_kinds(sources.results):
        table_of_kind = results.load_long_table(sources.results, settings=["knn"], kind=kind)
        for inputs, rows in means(sources.of_tag(table_of_kind)).groupby("input"):
            what = " and ".join(KINDS[word] for word in kind.split("+"))
            name = f"means-{inputs}-{kind.replace('+', '-')}"
            body += f"<h3>{text(INPUT_LABELS[inputs].capitalize())}: {text(what)}</h3>\n"
            body += _table_of_means(name, f"Mean similarity, {what}.", rows)
    return body


def other_kinds(root: Path) -> list[str]:
    """Kinds of results in the folder besides the plain ones: adversarial, pooled, baselines."""
    parsed = (results.parse_path(path, root) for path in results.score_csvs(root))
    return sorted({file.kind for file in parsed if file is not None} - {"plain"})


def _pairs(scores: pd.DataFrame, kind: str) -> str:
    """Heat maps of every pair of models, for one representational and one functional measure."""
    drawn = ""
    for dataset, measure in itertools.product(quantities.order_datasets(scores["dataset"]), ("cka", "dis")):
        figure = plots.heat_maps(scores, measure, dataset, kind)
        if figure is not None:
            caption = f"{SHOWN[measure].label} of every pair of models on {INPUT_LABELS[kind]}, {_dataset(dataset)}."
            drawn += _embedded(figure, f"heat_map_{measure}_{kind}", caption, wide=True)
    return collapsed(f"Every pair of models on {text(INPUT_LABELS[kind])}", drawn) if drawn else ""


# ---------------------------------------------------------------------------------------------------- agreement


def _agreement(sources: Study, scores: pd.DataFrame, figures: "Figures") -> str:
    """Agreement of predictions beside what the accuracies alone would give."""
    rows = scores[scores["measure"] == "dis"]
    drawn = "".join(figures.pop("data_effect", {}).values())
    if rows.empty:
        return drawn
    found = means(rows).set_index(["dataset", "input", "eps"])
    bounds = sources.bounds.set_index(["dataset", "input", "eps"])
    groups: dict[str, list[Row]] = {}
    for dataset, kind in itertools.product(quantities.order_datasets(rows["dataset"]), INPUT_LABELS):
        here = rows[(rows["dataset"] == dataset) & (rows["input"] == kind)]
        for eps in sorted(set(here["eps"])):
            key = (dataset, kind, eps)
            limits = [bounds.at[key, side] if key in bounds.index else math.nan for side in ("lower", "upper")]
            cells = [
                number(limits[0]),
                number(found.at[key, "mean"], spread=found.at[key, "spread"]),
                number(limits[1]),
            ]
            group = groups.setdefault(f"{_dataset(dataset)}, {INPUT_LABELS[kind]}", [])
            group.append(Row(f"eps {eps:g}", [*cells, f"{found.at[key, 'n']:,}"]))
    title = "Share of images on which two models predict the same class."
    note = (
        "The bounds follow from the accuracies alone (Fort, Hu and Lakshminarayanan 2020). Lower: errors are "
        "independent. Upper: the worse model is a perturbed copy of the better one. All are means over pairs; a pair "
        "can lie outside."
    )
    columns = ["radius", "lower", "agreement", "upper", "pairs"]
    return table("agreement-table", title, columns, groups, note=note) + drawn


# ---------------------------------------------------------------------------------------------------- subgroups


@dataclass(frozen=True)
class Subgroup:
    """One line of the table of subgroups: means over the pairs of models that have a score in both groups.

    Attributes:
        label: the measure, with its number of neighbours.
        agree, disagree: mean similarity; nan without pairs.
        pairs: how many pairs have both.
    """

    dataset: str
    input: str
    label: str
    eps: float
    agree: float
    disagree: float
    pairs: int
    test: differences.Difference

    @property
    def place(self) -> str:
        parts = _dataset(self.dataset), INPUT_LABELS[self.input], f"eps {self.eps:g}"
        return ", ".join(part for part in parts if part)


def subgroup_tests(subgroups: pd.DataFrame) -> list[Subgroup]:
    """Similarity where predictions agree and where they differ, for every measure, k and radius, regular images first.

    Args:
        subgroups: as `results.load_subgroups` gives them; scores that could not be computed count as absent.
    """
    order = {key: place for place, key in enumerate(SHOWN)}
    places = {dataset: place for place, dataset in enumerate(quantities.order_datasets(subgroups["dataset"]))}
    known = subgroups[subgroups["metric"].isin(list(order))]
    known = known.assign(
        first=[(places[dataset], kind == "inverted") for dataset, kind in zip(known["dataset"], known["input"])],
        place=known["metric"].map(order),
        knn=known["k"].astype(float),
        percent=known["perc_k"].astype(float),
    )
    found = []
    keys = ["first", "dataset", "input", "eps", "place", "metric", "knn", "percent"]
    for (_, dataset, kind, eps, _, metric, knn, percent), rows in known.groupby(keys, dropna=False):
        rows = rows.assign(similarity=SHOWN[metric].similarity(rows["score"].astype(float)))
        both = differences.by_pair(rows).dropna()
        label = _measure(metric, knn)
        if not math.isnan(percent):
            label = f"{SHOWN[metric].label} (k{NBSP}={NBSP}{percent:g}{NBSP}% of the images)"
        agree, disagree = both["agree"].mean(), both["disagree"].mean()
        test = differences.subgroup_difference(rows.dropna(subset="similarity"))
        found.append(Subgroup(dataset, kind, label, eps, agree, disagree, len(both), test))
    return found


def _p_value(test: differences.Difference) -> str:
    if math.isnan(test.p):
        return NOTHING
    return f'<data value="{test.p!r}">{"&lt; 0.001" if test.p < 0.001 else f"{test.p:.3f}"}</data>'


def _subgroups(subgroups: pd.DataFrame, figures: "Figures") -> str:
    drawn = "".join(figures.pop("rep_vs_pred_sim", {}).values())
    tests = [found for found in subgroup_tests(subgroups) if found.pairs]
    if not tests:
        return drawn
    groups: dict[str, list[Row]] = {}
    for found in tests:
        cells = [number(found.agree), number(found.disagree), number(found.test.mean), _p_value(found.test)]
        groups.setdefault(found.place, []).append(Row(found.label, [*cells, f"{found.pairs:,}"]))
    title = "Similarity on the images where two models predict the same class, and where they do not."
    note = (
        "Means over the pairs of models that have a score in both groups; p of a two-sided permutation test that swaps "
        "the groups model by model."
    )
    coarse = [found.test for found in tests if found.test.smallest_p > 0.05]
    if coarse:
        worst = max(coarse, key=lambda test: test.smallest_p)
        limit = f"{worst.models} models cannot give a p below {worst.smallest_p:.3g}"
        note += f" {limit}: a large p is no sign that there is no difference."
    columns = ["measure", "agree", "differ", "difference", "p", "pairs"]
    return table("subgroup-table", title, columns, groups, note=note) + drawn


# ---------------------------------------------------------------------------------------------------- probes


def _probes(root: Path, scores: pd.DataFrame, probes: pd.DataFrame, figures: "Figures") -> str:
    """Agreement of classifiers and of probes, and each probe's accuracy."""
    drawn = "".join(figures.pop("probe_agreement", {}).values())
    if probes.empty:
        return drawn
    named = [name for name in quantities.order_datasets(probes["dataset"]) if name]
    groups: dict[str, list[Row]] = {}
    for dataset in named or quantities.order_datasets(scores["dataset"]):
        compared = quantities.classifier_and_probe_agreement(scores, probes, dataset)
        for group, rows in compared.groupby("group", sort=False):
            values = rows["agreement"].astype(float)
            cells = [number(values.mean()), number(values.min()), number(values.max()), f"{len(values):,}"]
            groups.setdefault(_dataset(dataset), []).append(
                Row(" ".join(group.split()).replace("eps ", f"eps{NBSP}"), cells)
            )
    body = ""
    if groups:
        title = "Share of images on which two classifiers, or two linear probes, predict the same class."
        body += table("probe-table", title, ["pairs of", "mean", "least", "most", "pairs"], groups)
    body += drawn
    rows = []
    for path in sorted(root.rglob(results.PROBES_NAME)):
        for name, probe in results.read_record(path).get("probes", {}).items():
            accuracy = probe.get("accuracy")
            rows.append(Row(name, [_percent(math.nan if accuracy is None else accuracy)]))
    if rows:
        body += table("probe-accuracy", "Accuracy of each probe in percent.", ["probe", "accuracy"], {"": rows})
    return body


# ---------------------------------------------------------------------------------------------------- single models

SINGLES = {"mag": "magnitude", "con": "concentricity", "amb": "ambiguity", "disc": "discrepancy"}


def _singles(sources: Study) -> str:
    """Scores of one model's representation, and of the whole set of models."""
    rows = sources.of_tag(results.load_model_table(sources.results))
    if rows.empty:
        return ""
    # on inverted images: a model on the images made through itself; mag and con through others stay in the CSVs
    own = rows[(rows["source"] == rows["model"]) | (rows["source"] == "") | (rows["model"] == "")]
    own = own.assign(who=own["model"].where(own["model"] != "", own["source"].where(own["source"] != "", "all models")))
    radii = sorted(set(own["eps"]))
    groups: dict[str, list[Row]] = {}
    for (dataset, measure, kind), here in own.groupby(["dataset", "measure", "input"], sort=False):
        images = "own inverted images" if kind == "inverted" else INPUT_LABELS[kind]
        cells = here.groupby(["who", "eps"])["score"].mean().to_dict()
        groups[f"{_dataset(dataset)}: {SINGLES.get(measure, measure)}, {images}"] = [
            Row(who, [number(cells.get((who, eps), math.nan)) for eps in radii]) for who in dict.fromkeys(here["who"])
        ]
    title = "Scores of one model's representations, and of the predictions of a whole set."
    note = (
        "Magnitude: norm of the mean representation. Concentricity: mean cosine to it. Ambiguity: share of images on "
        "which any two models differ. Discrepancy: the largest disagreement of two models."
    )
    return table("singles-table", title, ["model", *_eps(radii)], groups, note=note)


# ---------------------------------------------------------------------------------------------------- figures

Figures = dict[str, dict[str, str]]
"""Notebook -> name of a figure -> HTML."""

CAPTIONS = {
    "similarity_": "Similarity of pairs of models by measure, data set and radius, on {}.",
    "agreement_": "Agreement of predictions by data set and radius on {}; lines: mean bounds from the accuracies.",
    "jsd_": "Similarity of predicted probabilities by data set and radius on {}: 1 - JSD / ln 2.",
    "jaccard_by_k_": "Jaccard similarity of neighbourhoods by their size k, data set and radius, on {}.",
    "rep_vs_pred_": "Similarity on the images where two models agree and where they differ, on {}; p as in the table.",
    "probe_agreement": "Agreement of classifiers and of linear probes; a point is a pair.",
    "inverted_": "Seed, target, and what each model at each radius made of the seed so that it represents the target.",
}
"""By the beginning of a figure's name."""

KINDS_OF_PICTURE = {
    "inverted_": "A grid of images, a row per target.",
    "heat_map_": "Heat maps, a panel per radius; the numbers are in the CSVs.",
}


def _matching(name: str, texts: Mapping[str, str], default: str) -> str:
    return next((found for start, found in texts.items() if name.startswith(start)), default)


def _draw(sources: Study) -> Figures:
    """Every figure that the results allow."""
    drawn: Figures = {}
    for notebook, figures in plots.FIGURES.items():
        for name, figure in figures(sources):
            if figure is not None:
                inputs = INPUT_LABELS["inverted" if name.endswith("_inverted") else "standard"]
                caption = _matching(name, CAPTIONS, name.replace("_", " ") + ".").replace("{}", inputs)
                drawn.setdefault(notebook, {})[name] = _embedded(figure, name, caption)
    return drawn


def _embedded(figure: Figure, name: str, caption: str, *, wide: bool = False) -> str:
    """The figure as part of the page: SVG, or PNG where it is made of pixels."""
    pixels = name.startswith("inverted_")
    file = io.BytesIO()
    # a fixed salt and no date: the same results give the same page
    with matplotlib.rc_context(plots.STYLE | {"svg.hashsalt": "univ"}):
        if pixels:
            figure.savefig(file, format="png", dpi=150)
            inches = figure.get_size_inches()
        else:
            # the layout of heat maps, whose panels are square, leaves too little room for long names of models
            box = {"bbox_inches": "tight", "pad_inches": 0.05} if wide else {}
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, **box)
            size = re.search(rb'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"', file.getvalue())
            inches = float(size[1]) / 72, float(size[2]) / 72
    width, height = (round(96 * length) for length in inches)  # CSS pixels
    default = "Box plots: quartiles, median, whiskers to the last score within 1.5 interquartile ranges."
    caption = caption[0].upper() + caption[1:]
    alt = f"{caption} {_matching(name, KINDS_OF_PICTURE, default)}"
    return picture(
        file.getvalue(), "image/png" if pixels else "image/svg+xml", (width, height), caption, alt, wide=wide
    )


# ---------------------------------------------------------------------------------------------------- provenance


def _provenance(made: Sequence[Made]) -> str:
    """The software first, then every run with its arguments and files, then results of which nothing is known."""
    runs_found = runs_of(made)
    body = ""
    software: dict[tuple[str, str], int] = {}
    for run in runs_found:
        software[run.software] = software.get(run.software, 0) + len(run.made)
    for (commit, versions), count in software.items():
        changed = " (files differed from it)" if commit.endswith("+changes") else ""
        commit = code(commit.removesuffix("+changes")) + changed if commit != "unknown" else commit
        body += definitions({"Results": f"{count:,}", "Commit": commit, "Versions": text(versions)})
    if len(software) > 1:
        body += _paragraphs("These results come from different commits or versions.")
    if runs_found:
        body += _paragraphs("Hashes of checkpoints and fingerprints of images are in the JSON beside each CSV.")
    body += "".join(_run(f"run-{place}", run) for place, run in enumerate(runs_found, 1))
    unknown = [one for one in made if not one.record]
    if unknown:
        items = [f"{code(one.path)}: {text(one.problem)}" for one in unknown]
        summary = f"{_count(len(unknown), 'result')} of which it is not known how they were made"
        body += collapsed(summary, bullets(items))
    return body


def _run(name: str, run: Run) -> str:
    """One run, closed: its arguments and the files it wrote."""
    words = [INPUT_LABELS.get(word, word) for word in run.about]
    script = code(run.script) if run.script else "unknown script"
    summary = f"{script} {text(', '.join([*words, _count(len(run.made), 'result')]))}"
    items = {key: code(_argument(value)) for key, value in sorted(run.arguments.items()) if value is not None}
    rows = [
        Row(str(one.path), [", ".join(map(str, one.images)) or NOTHING, text(one.settings) or NOTHING])
        for one in run.made
    ]
    commit, versions = run.software
    body = f"<p>Commit {code(commit)}; {text(versions)}.</p>\n"
    body += definitions(items) if items else _paragraphs("No arguments are recorded.")
    body += table(
        name, "Files below the results folder.", ["file", "images", "settings"], {"": rows}, words=["settings"]
    )
    return collapsed(summary, body)


def _argument(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---------------------------------------------------------------------------------------------------- missing


def _missing(
    sources: Study, scores: pd.DataFrame, accuracies: pd.DataFrame, subgroups: pd.DataFrame, probes: pd.DataFrame
) -> str:
    """What the study has and this folder has not, then what is in the folder but not in the tables."""
    lines = _lacking_settings(scores) + _lacking_models(scores) + _lacking_scores(scores)
    lines += _lacking_accuracies(scores, accuracies)
    if subgroups.empty:
        lines.append("no subgroups: subgroup_sim.py writes them")
    lacking: dict[str, list[str]] = {}
    for found in subgroup_tests(subgroups):
        if not found.pairs:
            lacking.setdefault(found.label, []).append(found.place)
    for label, places in lacking.items():
        lines.append(f"subgroups, {label}: no pair has a score in both groups ({'; '.join(places)})")
    if probes.empty:
        lines.append("no agreement of probes: compare_probes.py writes it")
    body = bullets([text(line) for line in lines]) or _paragraphs("Nothing that the study's figures need.")
    pooled = quantities.pooled(quantities.one_k(scores, sources.knn))
    if pooled:
        body += "<h3>Pooled</h3>\n" + bullets([text(line) for line in pooled])
        body += _paragraphs("Choose one tag with --exp to keep them apart.")
    left_out = _left_out(sources)
    if left_out:
        summary = f"{_count(len(left_out), 'result')} in the folder, but not in the tables"
        body += collapsed(summary, bullets(list(map(code, left_out))))
    return body


def _lacking_settings(scores: pd.DataFrame) -> list[str]:
    """Measures and radii that the study's figures of a data set need; data sets without any result in one line."""
    absent = [name for name in quantities.studied() if name not in set(scores["dataset"])]
    said = {f"{name}: no results" for name in absent}
    lines = [line for line in quantities.missing(scores, [*REPRESENTATIONAL, *FUNCTIONAL]) if line not in said]
    return [*lines, f"no comparisons of {', '.join(map(_dataset, absent))}"] if absent else lines


def _lacking_scores(scores: pd.DataFrame) -> list[str]:
    """Pairs of models whose score is nan."""
    return [
        f"{row.dataset}, {row.input}: {_measure(row.measure, row.knn)} at eps {row.eps:g} "
        f"has {_count(row.failed, 'pair')} without a score"
        for row in means(scores).itertuples()
        if row.failed
    ]


def _lacking_accuracies(scores: pd.DataFrame, accuracies: pd.DataFrame) -> list[str]:
    """Settings whose agreement has no bounds because the accuracies are not recorded."""
    compared = scores[scores["measure"] == "dis"][["dataset", "input", "eps"]].drop_duplicates().sort_values("eps")
    known = set(zip(accuracies["dataset"], accuracies["input"], accuracies["eps"]))
    lines = []
    for (dataset, kind), rows in compared.groupby(["dataset", "input"]):
        without = [f"{eps:g}" for eps in rows["eps"] if (dataset, kind, eps) not in known]
        if without:
            lines.append(f"{dataset}, {kind}: no accuracies beside the disagreement at eps {', '.join(without)}")
    return lines


def _lacking_models(scores: pd.DataFrame) -> list[str]:
    """Models that one radius or measure of a data set has and another has not."""
    lines = []
    for (dataset, kind), rows in scores.groupby(["dataset", "input"]):
        everyone = {*rows["model1"], *rows["model2"]}
        lacking: dict[tuple[str, ...], list[str]] = {}
        for (measure, eps), here in rows.groupby(["measure", "eps"]):
            if absent := tuple(sorted(everyone - {*here["model1"], *here["model2"]})):
                lacking.setdefault(absent, []).append(f"{measure} at eps {eps:g}")
        lines += [
            f"{dataset}, {kind}: no {', '.join(models)} in {'; '.join(where)}" for models, where in lacking.items()
        ]
    return lines


def _left_out(sources: Study) -> list[Path]:
    """CSVs of scores that no table shows: another tag or preprocessing (uncentred, Euclidean neighbours, ...)."""
    root = sources.results
    shown = set()
    for kind in ("plain", *other_kinds(root)):
        for found in results.find_results(root, kind=kind):
            if sources.exp is None or found.file.exp == results.canonical_exp(sources.exp):
                shown.add(found.path)
    return [
        path.relative_to(root)
        for path in results.score_csvs(root)
        if results.parse_path(path, root) and path not in shown
    ]


# ---------------------------------------------------------------------------------------------------- differences


def _differences(readme: Path | None) -> str:
    source = None
    if readme is not None and readme.is_file():
        source = markdown_section(readme.read_text(encoding="utf-8"), DIFFERENCES)
    if source is None:
        return _paragraphs(f"They are listed in the README, section “{DIFFERENCES}”, which was not at hand.")
    return markdown(source, "What the original does, and what is done here.")
