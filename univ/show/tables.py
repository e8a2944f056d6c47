"""Long tables -> the tables that report and summary show, as DataFrames of what stands in each cell."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from univ.measures.cards import SHOWN, find_card
from univ.show import differences, evidence, quantities
from univ.show.plots import INPUT_LABELS
from univ.show.sources import Sources

NBSP = "\N{NO-BREAK SPACE}"
NOTHING = "–"  # in cells of what there is not
SINGLES = {"mag": "magnitude", "con": "concentricity", "amb": "ambiguity", "disc": "discrepancy"}


class Cell(NamedTuple):
    """What a cell shows, all digits of its number (None in cells of words), and the number's spread."""

    text: str
    value: float | None = None
    spread: str = ""


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title, note: what it shows; how to read it.
        cells: rows by (group, name), in order; floats, counts (int) and words, nan where there is nothing.
        spread: standard deviations of the columns that have one, in rows like `cells`.
        digits: decimals; fewer from 100 on.
        words: the columns that hold words.
    """

    title: str
    cells: pd.DataFrame
    note: str = ""
    spread: pd.DataFrame | None = None
    digits: int = 3
    words: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All headers, that of the rows' names first."""
        return [self.cells.index.names[1], *self.cells.columns]

    def groups(self) -> dict[str, list[tuple[str, list[Cell]]]]:
        """Name of a group of rows ('' for none) -> name and cells of each."""
        spread = pd.DataFrame(index=self.cells.index) if self.spread is None else self.spread
        spread = spread.reindex(columns=self.cells.columns).to_numpy(float)
        groups: dict[str, list[tuple[str, list[Cell]]]] = {}
        for ((group, name), *values), spreads in zip(self.cells.itertuples(), spread):
            groups.setdefault(group, []).append((name, list(map(self._cell, self.cells.columns, values, spreads))))
        return groups

    def _cell(self, column: str, value: float | int | str, spread: float) -> Cell:
        if not isinstance(value, float):
            return Cell((value if isinstance(value, str) else f"{value:,}") or NOTHING)
        if math.isnan(value):
            return Cell(NOTHING)
        digits = self.digits if abs(value) < 100 else min(self.digits, 1)
        text = "< 0.001" if column == "p" and value < 0.001 else f"{value:.{digits}f}"
        return Cell(text, float(value), "" if math.isnan(spread) else f"{spread:.{digits}f}")


def dataset_label(name: str) -> str:
    """A data set as tables name it: `sat6/imagenet` is SAT-6 seen by models of ImageNet."""
    base, _, models = name.partition("/")
    return quantities.dataset_label(base) + (f", models of {quantities.dataset_label(models)}" if models else "")


def measure_label(key: str, knn: float = math.nan) -> str:
    """A measure as tables name it, with its number of neighbours."""
    label = SHOWN[key].label if key in SHOWN else f"{key} (raw score)"
    return label if math.isnan(knn) else f"{label} (k{NBSP}={NBSP}{knn:g})"


def _place(column: pd.Series) -> pd.Series:
    """Key for sorting: data sets, measures and kinds of images in the study's order, models as they come."""
    match column.name:
        case "dataset":
            order = quantities.order_datasets(column)
        case "measure":
            order = [*SHOWN, *sorted(set(column))]
        case "input":
            order = list(INPUT_LABELS)
        case "within":
            return column.astype(int)
        case "model":
            order = list(column)
        case _:
            return column
    return column.map({value: place for place, value in enumerate(dict.fromkeys(order))})


def _by_eps(rows: pd.DataFrame, name: str, value: str) -> pd.DataFrame:
    """Mean of a column by (group, name), in order of appearance, and radius."""
    wide = rows.groupby(["group", name, "eps"])[value].mean().unstack("eps")
    wide = wide.reindex(pd.MultiIndex.from_frame(rows[["group", name]].drop_duplicates()))
    return wide.set_axis([f"eps{NBSP}{eps:g}" for eps in wide.columns], axis=1)


# --- accuracy -------------------------------------------------------------------------------------------------------


def accuracy(sources: Sources) -> Table | None:
    """Per model and radius: on the compared images, on the test part clean and attacked."""
    compared = sources.accuracies[sources.accuracies["input"] == "standard"].assign(
        attack_eps=-1.0, attack="none", norm="none"
    )
    rows = pd.concat([part for part in (compared, sources.evaluations) if len(part)] or [compared])
    if rows.empty:
        return None
    rows = rows.sort_values(["dataset", "attack_eps", "norm", "attack", "model"], key=_place)
    images = {-1: "compared images", 0: "test part, clean"}
    rows["group"] = [
        f"{dataset_label(name)}: {images.get(eps) or _attacked(eps, *about)}"
        for name, eps, *about in zip(rows["dataset"], rows["attack_eps"], rows["attack"], rows["norm"])
    ]
    title = "Accuracy in percent, by the radius that a model was trained with."
    return Table(title, 100 * _by_eps(rows, "model", "accuracy"), digits=1)


def _attacked(eps: float, attack: str, norm: str) -> str:
    """Which attack, as far as it is not the usual one, PGD in L2."""
    names = {"pgd": "", "l2": "", "apgd": "APGD", "autoattack": "AutoAttack", "linf": "Linf"}
    unusual = ", ".join(filter(None, (names.get(word, word) for word in (attack, norm))))
    return f"test part, attacked at eps {eps:g}" + (f" ({unusual})" if unusual else "")


def transfer(sources: Sources) -> Table | None:
    """How inverted images are classified by the model inverted and by the others."""
    rows = sources.accuracies[sources.accuracies["input"] == "inverted"]
    if rows.empty:
        return None
    rows = rows.assign(other=rows["source"] != rows["model"]).sort_values(["dataset", "other"], key=_place)
    others = {False: "the model inverted", True: "the other models"}
    rows = rows.assign(**{"group": rows["dataset"].map(dataset_label), "classified by": rows["other"].map(others)})
    title = "Inverted images classified as their target's class, in percent."
    note = "Where other models see the target too, they respond to what the image was made to show one model."
    return Table(title, 100 * _by_eps(rows, "classified by", "accuracy"), note, digits=1)


# --- similarity -----------------------------------------------------------------------------------------------------


KEYS = ["input", "dataset", "measure", "knn", "within"]


def _with_keys(scores: pd.DataFrame, accuracies: pd.DataFrame | None) -> pd.DataFrame:
    """Scores with the columns of KEYS, similarity (the score of a measure that the figures do not know), and `few`:
    undefined, as a model makes too few errors."""
    known = scores["measure"].isin(list(SHOWN))
    others = scores[~known].assign(similarity=scores.loc[~known, "score"])
    rows = pd.concat([part for part in (quantities.with_similarity(scores), others) if len(part)] or [others])
    neighbors = rows["measure"].map(lambda key: find_card(key).neighbors).astype(bool)
    rows["knn"] = rows["knn"].astype(float).where(neighbors)
    rows["within"] = quantities.within_architecture(rows)
    rows["images"] = rows.get("images", math.nan)
    rows["few"] = quantities.too_few_errors(rows, accuracies)
    rows["similarity"] = rows["similarity"].where(~rows["few"])
    return rows


def means(scores: pd.DataFrame, accuracies: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean similarity over pairs of models, one row per setting.

    Args:
        scores: long table with the column `knn`; self-comparisons are not in it. A measure that the figures do not
            know is taken as it is.
        accuracies: on the compared images, to leave out scores that rest on too few errors.

    Returns:
        Columns input, dataset, measure, knn (nan for measures without neighbours), within (pairs of seeds of one
        architecture, not of different ones), eps, mean, low and high (its interval over architectures; nan without
        one), spread (standard deviation between pairs, nan for one pair), n (comparisons), failed (comparisons
        without a score), few (those that rest on too few errors), architectures, images (how many were compared: a
        tuple, of more than one number if scores differ in it); in the study's order.
    """
    rows, table = _with_keys(scores, accuracies), []
    for setting, group in rows.groupby([*KEYS, "eps"], dropna=False):
        found = evidence.over_architectures(zip(zip(group["model1"], group["model2"]), group["similarity"]))
        few, failed = group["few"].sum(), (group["similarity"].isna() & ~group["few"]).sum()
        numbers = found.mean, *found.interval(), group["similarity"].std(), group["similarity"].count()
        images = tuple(sorted(set(group["images"].dropna().astype(int))))
        table.append((*setting, *numbers, failed, few, found.architectures, images))
    columns = ["mean", "low", "high", "spread", "n", "failed", "few", "architectures", "images"]
    table = pd.DataFrame(table, columns=[*KEYS, "eps", *columns])
    return table.sort_values([*KEYS, "eps"], key=_place, ignore_index=True)


def rises(
    scores: pd.DataFrame, accuracies: pd.DataFrame | None = None, margin: float = evidence.MARGIN
) -> pd.DataFrame:
    """How similarity changes over eps, one row per measure of a data set and kind of images that has two eps.

    Args:
        scores, accuracies: as for `means`.
        margin: changes within -+margin count as equivalent, for measures that give identical models a similarity of 1.

    Returns:
        KEYS, then rise, low, high (see `evidence.rise`), p, equivalence_p, both corrected for the measures of the data
        set and kind of images (Holm), verdict, architectures and note (why there is no interval). Pairs within an
        architecture have a rise and an interval only: the question is whether architectures become alike.
    """
    table = []
    for setting, group in _with_keys(scores, accuracies).groupby(KEYS, dropna=False):
        found = evidence.rise(zip(zip(group["model1"], group["model2"]), group["eps"], group["similarity"]))
        if not math.isnan(found.mean):
            _, _, measure, _, within = setting
            p = math.nan if within else found.p
            same = found.equivalence_p(margin) if not within and quantities.ends_at_one(measure) else math.nan
            table.append((*setting, found.mean, *found.interval(), p, same, found.architectures, found.note))
    columns = ["rise", "low", "high", "p", "equivalence_p", "architectures", "note"]
    table = pd.DataFrame(table, columns=[*KEYS, *columns]).sort_values(KEYS, key=_place, ignore_index=True)
    corrected = table.groupby(["input", "dataset"])
    for name in ("p", "equivalence_p"):
        table[name] = corrected[name].transform(lambda values: evidence.holm(values.tolist())).astype(float)
    told = zip(table["rise"], table["p"], table["equivalence_p"])
    table["verdict"] = [evidence.verdict(*each, margin) for each in told]
    return table


def similarity(title: str, rows: pd.DataFrame, changes: pd.DataFrame | None = None) -> Table:
    """Rows of `means`, and of `rises`, by data set and measure (rows) and radius (columns)."""
    rows = _named(rows)
    cells = _by_eps(rows, "measure", "mean")
    half = _by_eps(rows.assign(half=rows["high"] - rows["mean"]), "measure", "half")
    pairs = rows.groupby(["group", "measure"])["n"].agg(["min", "max"]).reindex(cells.index)
    cells["pairs"] = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in pairs.itertuples(False)]
    note = (
        "Larger is more alike. Means over pairs of models, ± half the width of the 95 % confidence interval over "
        "architectures, each left out in turn; none with fewer than three."
    )
    if changes is not None and len(changes):
        changes = _named(changes).set_index(["group", "measure"]).reindex(cells.index)
        cells[["rise", "p"]] = changes[["rise", "p"]].astype(float)
        cells["verdict"] = changes["verdict"].fillna("")
        half["rise"] = changes["high"] - changes["rise"]
        note += (
            " Rise: change from the smallest to the largest eps, along the line fitted to each pair. p: of no change, "
            "corrected for the measures shown (Holm), as the verdict is."
        )
    return Table(title, cells, " ".join([note, *_reservations(rows)]), half, words=("verdict",))


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `means` or `rises` with the name of the group and of the measure."""
    of = zip(rows["measure"], rows["knn"], rows["within"])
    names = [measure_label(key, knn) + (", seeds of one architecture" if within else "") for key, knn, within in of]
    return rows.assign(group=rows["dataset"].map(dataset_label), measure=names, key=rows["measure"])


def _reservations(rows: pd.DataFrame) -> list[str]:
    """What is undefined, and what must not be compared, among rows of `means`: a sentence each."""
    said = []
    for label, few in rows[rows["few"] > 0].groupby("measure", sort=False):
        where = ", ".join(f"{row.few} of {row.few + row.n + row.failed} at eps {row.eps:g}" for row in few.itertuples())
        said.append(f"{label} is undefined for pairs with a model of fewer than {quantities.ERRORS} errors ({where}).")
    sized = rows[rows["key"].map(quantities.depends_on_size).astype(bool)]
    if len(images := sorted(set().union(*sized["images"]))) > 1:
        names, numbers = ", ".join(dict.fromkeys(sized["measure"])), " and ".join(f"{n:,}" for n in images)
        said.append(f"Not comparable between numbers of images ({numbers} here), on which they depend: {names}.")
    if sized.groupby("key")["knn"].nunique().gt(1).any():
        said.append("Scores of different k are not comparable with each other.")
    return said


def change(found: pd.DataFrame, dataset: str, kind: str) -> dict[str, tuple[pd.Series, pd.Series]]:
    """CKA and agreement at the smallest and the largest radius: measure -> both rows of `means`."""
    rows = found[(found["dataset"] == dataset) & (found["input"] == kind) & ~found["within"]].dropna(subset="mean")
    both = {measure: rows[rows["measure"] == measure] for measure in ("cka", "dis")}
    return {measure: (rows.iloc[0], rows.iloc[-1]) for measure, rows in both.items() if len(rows) > 1}


def agreement(sources: Sources, found: pd.DataFrame) -> Table | None:
    """Agreement of predictions (in `means`) beside what the accuracies alone would give."""
    keys = ["dataset", "input", "eps"]
    rows = found[(found["measure"] == "dis") & ~found["within"]]
    if rows.empty:
        return None
    rows = rows.merge(sources.bounds.astype({"eps": float}), how="left", on=keys).sort_values(keys, key=_place)
    places = zip(rows["dataset"], rows["input"])
    rows["group"] = [f"{dataset_label(name)}, {INPUT_LABELS[kind]}" for name, kind in places]
    rows["radius"] = [f"eps {eps:g}" for eps in rows["eps"]]
    rows = rows.rename(columns={"mean": "agreement", "n": "pairs"}).set_index(["group", "radius"])
    note = (
        "The bounds follow from the accuracies alone (Fort, Hu and Lakshminarayanan 2020). Lower: errors are "
        "independent. Upper: the worse model is a perturbed copy of the better one. All are means over pairs; a pair "
        "can lie outside. ±: half the width of the 95 % confidence interval over architectures."
    )
    spread = (rows["high"] - rows["agreement"]).to_frame("agreement")
    cells = rows[["lower", "agreement", "upper", "pairs"]].astype({"pairs": object})
    return Table("Share of images on which two models predict the same class.", cells, note, spread)


# --- subgroups ------------------------------------------------------------------------------------------------------


def subgroup_tests(subgroups: pd.DataFrame) -> pd.DataFrame:
    """Similarity where predictions agree and where they differ, for every measure, k and radius, regular images first.

    Scores that could not be computed count as absent.

    Returns:
        Columns group (data set, images and radius), measure (with its k), agree, differ (mean similarity of the pairs
        that have both, nan without any), pairs (their number), difference, half (half the width of its interval), p,
        models, smallest_p and note of the test, and unequal (the groups of a pair are not known to be of one size).
    """
    rows = subgroups[subgroups["metric"].isin(list(SHOWN))].rename(columns={"metric": "measure"})
    rows = rows.astype({"score": float, "k": float, "perc_k": float})
    keys = ["dataset", "input", "eps", "measure", "k", "perc_k"]
    tests = []
    rows = quantities.with_similarity(rows).sort_values(keys, key=_place)
    for (dataset, kind, eps, measure, k, percent), of_setting in rows.groupby(keys, dropna=False, sort=False):
        both = differences.by_pair(of_setting).dropna()
        test = differences.subgroup_difference(of_setting.dropna(subset="similarity"))
        label = measure_label(measure, k)
        if not math.isnan(percent):
            label = f"{SHOWN[measure].label} (k{NBSP}={NBSP}{percent:g}{NBSP}% of the images)"
        place = ", ".join(filter(None, (dataset_label(dataset), INPUT_LABELS[kind], f"eps {eps:g}")))
        group = both["agree"].mean(), both["disagree"].mean(), test.mean, test.half, test.p, len(both)
        sizes = of_setting["n"] if "n" in of_setting else pd.Series(math.nan, index=of_setting.index)
        unequal = bool(sizes.groupby([of_setting["model1"], of_setting["model2"]]).nunique().ne(1).any())
        tests.append((place, label, *group, test.models, test.smallest_p, test.note, unequal))
    columns = ["group", "measure", "agree", "differ", "difference", "half", "p", "pairs", "models", "smallest_p"]
    columns += ["note", "unequal"]
    return pd.DataFrame(tests, columns=columns)


def subgroups(tests: pd.DataFrame) -> Table | None:
    """The settings of `subgroup_tests` in which some pair has a score in both groups."""
    tests = tests[tests["pairs"] > 0]
    if tests.empty:
        return None
    note = (
        "Means over the pairs of models that have a score in both groups; ± half the width of the 95 % confidence "
        "interval over architectures; p of a two-sided permutation test that swaps the groups architecture by "
        "architecture, corrected for the measures shown (Holm)."
    )
    if tests["unequal"].any():
        note += (
            " The groups are of unequal size: Procrustes, k-NN and RTD differ between them for that alone "
            "(subgroup_sim.py cuts them to one size unless --published)."
        )
    note += "".join(f" No p: {reason}." for reason in dict.fromkeys(filter(None, tests["note"])))
    coarse = tests[tests["smallest_p"] > 0.05]
    if len(coarse):
        worst = coarse.loc[coarse["smallest_p"].idxmax()]
        note += f" {worst['models']} architectures cannot give a p below {worst['smallest_p']:.3g}"
        note += ": a large p is no sign that there is no difference."
    tests = tests.assign(p=tests.groupby("group")["p"].transform(lambda p: evidence.holm(p.tolist())).astype(float))
    cells = tests.set_index(["group", "measure"])[["agree", "differ", "difference", "p", "pairs"]]
    half = tests.set_index(["group", "measure"])[["half"]].set_axis(["difference"], axis=1)
    title = "Similarity on the images where two models predict the same class, and where they do not."
    return Table(title, cells.astype({"pairs": object}), note, half)


# --- probes, single models ------------------------------------------------------------------------------------------


def probes(sources: Sources) -> Table | None:
    """Agreement of classifiers and of linear probes."""
    rows = []
    for dataset, compared in quantities.agreements(sources.scores, sources.probes).items():
        for group, values in compared.groupby("group", sort=False)["agreement"]:
            values = values.astype(float)
            name = " ".join(group.split()).replace("eps ", f"eps{NBSP}")
            rows.append((dataset_label(dataset), name, values.mean(), values.min(), values.max(), len(values)))
    if not rows:
        return None
    cells = pd.DataFrame(rows, columns=["group", "pairs of", "mean", "least", "most", "pairs"])
    title = "Share of images on which two classifiers, or two linear probes, predict the same class."
    return Table(title, cells.astype({"pairs": object}).set_index(["group", "pairs of"]))


def probe_accuracies(sources: Sources) -> Table | None:
    """Accuracy of each probe."""
    if not sources.probe_accuracies:
        return None
    names = pd.MultiIndex.from_tuples([("", name) for name in sources.probe_accuracies], names=["group", "probe"])
    cells = pd.DataFrame({"accuracy": list(sources.probe_accuracies.values())}, index=names, dtype=float)
    return Table("Accuracy of each probe in percent.", 100 * cells, digits=1)


def singles(sources: Sources) -> Table | None:
    """Scores of one model's representation, and of the whole set of models."""
    rows = sources.singles
    # on inverted images: a model on the images made through itself; mag and con through others stay in the CSVs
    rows = rows[(rows["source"] == rows["model"]) | (rows["source"] == "") | (rows["model"] == "")]
    if rows.empty:
        return None
    rows = rows.sort_values("dataset", key=_place, kind="stable")
    images = {**INPUT_LABELS, "inverted": "own inverted images"}
    rows = rows.assign(
        model=[model or source or "all models" for model, source in zip(rows["model"], rows["source"])],
        group=[
            f"{dataset_label(dataset)}: {SINGLES.get(measure, measure)}, {images[kind]}"
            for dataset, measure, kind in zip(rows["dataset"], rows["measure"], rows["input"])
        ],
    )
    note = (
        "Magnitude: norm of the mean representation. Concentricity: mean cosine to it. Ambiguity: share of images on "
        "which any two models differ. Discrepancy: the largest disagreement of two models."
    )
    title = "Scores of one model's representations, and of the predictions of a whole set."
    return Table(title, _by_eps(rows, "model", "score"), note)


# --- what is missing ------------------------------------------------------------------------------------------------


def missing(sources: Sources, found: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """What the study has and this folder, by its `means` and `subgroup_tests`, has not, a line each."""
    scores = sources.scores
    absent = [name for name in quantities.studied() if name not in set(scores["dataset"])]
    lines = quantities.missing(scores, [*quantities.REPRESENTATIONAL, *quantities.FUNCTIONAL])
    lines = [line for line in lines if line not in {f"{name}: no results" for name in absent}]
    if absent:
        lines.append(f"no comparisons of {', '.join(map(dataset_label, absent))}")
    lines += _missing_models(scores)
    for row in found[found["failed"] > 0].itertuples():
        pairs = "1 pair" if row.failed == 1 else f"{row.failed:,} pairs"
        measure = measure_label(row.measure, row.knn)
        lines.append(f"{row.dataset}, {row.input}: {measure} at eps {row.eps:g} has {pairs} without a score")
    compared = found[found["measure"] == "dis"]
    known = set(zip(sources.accuracies["dataset"], sources.accuracies["input"], sources.accuracies["eps"]))
    for (dataset, kind), rows in compared.groupby(["dataset", "input"]):
        if without := [f"{eps:g}" for eps in rows["eps"] if (dataset, kind, eps) not in known]:
            lines.append(f"{dataset}, {kind}: no accuracies beside the disagreement at eps {', '.join(without)}")
    if sources.subgroups.empty:
        lines.append("no subgroups: subgroup_sim.py writes them")
    for label, rows in tests[tests["pairs"] == 0].groupby("measure", sort=False):
        lines.append(f"subgroups, {label}: no pair has a score in both groups ({'; '.join(rows['group'])})")
    if sources.probes.empty:
        lines.append("no agreement of probes: compare_probes.py writes it")
    return lines


def _missing_models(scores: pd.DataFrame) -> list[str]:
    """Models that one radius or measure of a data set has and another has not."""
    lines = []
    for (dataset, kind), rows in scores.groupby(["dataset", "input"]):
        everyone = {*rows["model1"], *rows["model2"]}
        lacking: dict[tuple[str, ...], list[str]] = {}
        for (measure, eps), of_setting in rows.groupby(["measure", "eps"]):
            if absent := tuple(sorted(everyone - {*of_setting["model1"], *of_setting["model2"]})):
                lacking.setdefault(absent, []).append(f"{measure} at eps {eps:g}")
        for models, where in lacking.items():
            lines.append(f"{dataset}, {kind}: no {', '.join(models)} in {'; '.join(where)}")
    return lines
