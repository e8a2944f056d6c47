"""One page about a data set from the results folder: accuracies, similarity and agreement by eps, and what they say.

In: the CSVs that evaluation, rep.py, func.py, subgroup_sim.py and compare_probes.py wrote. Out: Markdown.
"""

import re
from pathlib import Path

import pandas as pd

from univ.errors import plain
from univ.measures.cards import SHOWN
from univ.results import load_accuracies, load_evaluations, load_long_table, load_probe_agreement

INPUTS = {"standard": "regular", "inverted": "inverted"}
SHARE = "{:.3f}".format


def summarize(results_dir: Path, dataset: str, accuracy_dir: Path, *, scale: str = "") -> str:
    """The page as Markdown text.

    Args:
        results_dir: the results folder.
        dataset: whose results to read.
        accuracy_dir: folder of the CSVs that evaluation appended to.
        scale: a sentence on how the results were made, put below the title.
    """
    scores = load_long_table(results_dir)
    scores = scores[scores["dataset"] == dataset]
    parts = [f"# {plain(dataset)}: are robust models more alike?", scale, _conclusion(scores)]
    parts += _section("Accuracy", _accuracies(accuracy_dir, dataset))
    parts += _section("Similarity, mean over pairs of models", _similarities(scores))
    parts += _section("Inverted images as other models see them", _transfer(results_dir, dataset))
    parts += _section("Agreement of linear probes", _probes(results_dir, dataset))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []


def markdown(table: pd.DataFrame) -> str:
    """A table of text cells as Markdown, its index first."""
    rows = [[table.index.name or "", *map(str, table.columns)], *([str(row), *table.loc[row]] for row in table.index)]
    rows = [[re.sub(r"([\\|<`*$\[])", r"\\\1", plain(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _accuracies(folder: Path, dataset: str) -> str:
    rows = load_evaluations(sorted(folder.glob("*.csv")))
    rows = rows[rows["dataset"] == dataset]
    if rows.empty:
        return ""
    table = pd.DataFrame(index=pd.Index(dict.fromkeys(rows["model"]), name="percent correct"))
    for (eps, attack), group in rows.groupby(["eps", "attack_eps"]):
        shares = group.set_index("model")["accuracy"]
        name = "clean" if attack == 0 else f"attacked at {attack:g}"
        table[f"eps {eps:g}, {name}"] = [f"{100 * shares[m]:.1f}" if m in shares else "" for m in table.index]
    return markdown(table)


def _similarities(scores: pd.DataFrame) -> str:
    table = pd.DataFrame()
    for key, how in SHOWN.items():
        for images, word in INPUTS.items():
            rows = scores[(scores["measure"] == key) & (scores["input"] == images)]
            for eps, group in rows.groupby("eps"):
                values = how.similarity(group["score"])
                table.loc[f"{how.label}, {word} images", f"eps {eps:g}"] = SHARE(values.mean())
    if table.empty:
        return ""
    table.index.name = "larger is more alike"
    return markdown(table[sorted(table.columns, key=lambda name: float(name.split()[1]))].fillna(""))


def _transfer(results_dir: Path, dataset: str) -> str:
    rows = load_accuracies(results_dir)
    rows = rows[(rows["dataset"] == dataset) & (rows["input"] == "inverted")]
    if rows.empty:
        return ""
    table = pd.DataFrame(
        index=pd.Index(["the model inverted", "the other models"], name="share classified as the target's class by")
    )
    for eps, group in rows.groupby("eps"):
        own = group["source"] == group["model"]
        table[f"eps {eps:g}"] = [SHARE(group.loc[own, "accuracy"].mean()), SHARE(group.loc[~own, "accuracy"].mean())]
    return markdown(table)


def _probes(results_dir: Path, dataset: str) -> str:
    rows = load_probe_agreement(results_dir / "probing")
    rows = rows[rows["dataset"] == dataset]
    if rows.empty:
        return ""
    table = pd.DataFrame(index=pd.Index(["probes on frozen representations"], name="mean agreement over pairs"))
    for eps, group in rows.groupby("eps"):
        table[f"eps {eps:g}"] = [SHARE(group["agreement"].mean())]
    return markdown(table)


def mean_by_eps(scores: pd.DataFrame, measure: str, images: str) -> pd.Series:
    """Mean score over pairs, indexed by eps."""
    rows = scores[(scores["measure"] == measure) & (scores["input"] == images)]
    return rows.groupby("eps")["score"].mean()


def _conclusion(scores: pd.DataFrame) -> str:
    """One sentence per kind of image: whether robust models came out more alike than standard ones, as measured."""
    sentences = []
    for images, word in INPUTS.items():
        cka, disagreement = (mean_by_eps(scores, measure, images) for measure in ("cka", "dis"))
        if len(cka) < 2 or len(disagreement) < 2:
            continue
        low, high = cka.index.min(), cka.index.max()
        alike = _compare(cka[low], cka[high], "CKA")
        agree = _compare(1 - disagreement[low], 1 - disagreement[high], "agreement")
        sentences.append(
            f"On {word} images the models trained at eps {high:g} are {alike} in their representations and {agree} in "
            f"their predictions than the standard ones."
        )
    return " ".join(sentences)


def _compare(standard: float, robust: float, name: str) -> str:
    word = "more" if robust > standard else "less" if robust < standard else "no more"
    return f"{word} alike ({name} {robust:.3f} against {standard:.3f})"
