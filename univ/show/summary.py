"""One page about a data set in Markdown: the report's tables, and a sentence on what they say."""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from univ.errors import plain
from univ.show import evidence, tables
from univ.show.plots import INPUT_LABELS
from univ.show.sources import Sources
from univ.show.tables import Table

FEW = 8  # architectures: the study's number


def summarize(results_dir: Path, dataset: str, *, scale: str = "", margin: float = evidence.MARGIN) -> str:
    """The page as Markdown text.

    Args:
        scale: a sentence on how the results were made, put below the title.
        margin: changes over eps within -+margin count as equivalent.
    """
    sources = Sources(results_dir, dataset=dataset, margin=margin)
    found = tables.means(sources.scores, sources.accuracies)
    changes = tables.rises(sources.scores, sources.accuracies, margin)
    parts = [f"# {plain(dataset)}: are robust models more alike?", scale, conclusion(found, changes, dataset)]
    parts += [limits(sources.scores)] if len(found) else []
    parts += _section("Accuracy", tables.accuracy(sources))
    for kind, label in INPUT_LABELS.items():
        rows, rise = (table[table["input"] == kind] for table in (found, changes))
        parts += _section(f"Similarity on {label}", tables.similarity("", rows, rise) if len(rows) else None)
    parts += _section("Inverted images as other models see them", tables.transfer(sources))
    parts += _section("Agreement of linear probes", tables.probes(sources))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, table: Table | None) -> list[str]:
    return [] if table is None else [f"## {title}", f"{table.title} {table.note}".strip(), markdown(table)]


def markdown(table: Table) -> str:
    """A table as Markdown, the group of each row first where there are several."""
    groups = table.groups()
    rows = [
        [group, name, *(f"{cell.text} ± {cell.spread}" if cell.spread else cell.text for cell in cells)]
        for group, of_group in groups.items()
        for name, cells in of_group
    ]
    rows.insert(0, ["", *table.columns])
    rows = [[re.sub(r"([\\|<`*$\[])", r"\\\1", plain(cell)) for cell in row[len(groups) < 2 :]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def conclusion(found: pd.DataFrame, changes: pd.DataFrame, dataset: str) -> str:
    """One sentence per kind of image: what `tables.means` and `tables.rises` let one say of representations (CKA) and
    predictions (agreement)."""
    sentences = []
    for kind, label in INPUT_LABELS.items():
        words = {}
        for measure, (standard, robust) in tables.change(found, dataset, kind).items():
            of = changes[(changes["dataset"] == dataset) & (changes["input"] == kind) & ~changes["within"]]
            for rise in of[of["measure"] == measure].itertuples():
                name = "CKA" if measure == "cka" else "agreement of predictions"
                means = f"{standard['mean']:.3f} at eps {standard['eps']:g}, {robust['mean']:.3f} at {robust['eps']:g}"
                words[measure] = f"{name} {told(rise)} ({means}; {estimated(rise)})"
        if words:
            sentences.append(f"On {label} {', and '.join(words.values())}.")
    return " ".join(sentences)


def told(rise: Any) -> str:
    """The verdict of a row of `tables.rises` as a predicate; what was estimated is for `estimated`."""
    first, _, both = rise.verdict.partition(", ")
    if not first:
        return "changed as shown, by how much beyond chance is not known"
    predicate = {"rises": "rises", "falls": "falls", "no clear change": "shows no clear change"}
    return predicate.get(first, f"is {first}") + (f" and is {both}" if both else "")


def estimated(rise: Any) -> str:
    """The change along the lines fitted over eps, with its interval or why there is none."""
    change = f"change {rise.rise:+.3f}"
    if math.isnan(rise.low):
        return f"{change}, {rise.note}"
    p = "p < 0.001" if rise.p < 0.001 else f"p = {rise.p:.3f}"
    return f"{change}, 95 % interval {rise.low:+.3f} to {rise.high:+.3f}, corrected {p}"


def limits(scores: pd.DataFrame) -> str:
    """What the scores cannot show, however clear they are."""
    models = {*scores["model1"], *scores["model2"]}
    names = {evidence.architecture(model) for model in models}
    images = sorted(set(scores["images"].dropna().astype(int)))
    said = [f"what other architectures do than these {len(names)}"]
    if len(names) < FEW:
        said[0] += f" (with fewer than {FEW}, only large changes are clear)"
    count = scores["dataset"].nunique()
    said.append(f"what other data sets give than {'this one' if count == 1 else f'these {count}'}")
    if len(models) == len(names):
        said.append("whether two architectures are less alike than two trainings of one, as each was trained once")
    if images:
        said.append(f"the value with more images than {' and '.join(f'{n:,}' for n in images)}")
    said.append("that eps itself is the cause where training differs in more than eps")
    return f"What this cannot show: {'; '.join(said)}."
