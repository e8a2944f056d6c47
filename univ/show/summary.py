"""One page about a data set in Markdown: the report's tables, and a sentence on what they say."""

import re
from pathlib import Path

import pandas as pd

from univ.errors import plain
from univ.show import tables
from univ.show.plots import INPUT_LABELS
from univ.show.sources import Sources
from univ.show.tables import Table


def summarize(results_dir: Path, dataset: str, *, scale: str = "") -> str:
    """The page as Markdown text.

    Args:
        scale: a sentence on how the results were made, put below the title.
    """
    sources = Sources(results_dir, dataset=dataset)
    found = tables.means(sources.scores)
    parts = [f"# {plain(dataset)}: are robust models more alike?", scale, conclusion(found, dataset)]
    parts += _section("Accuracy", tables.accuracy(sources))
    for kind, label in INPUT_LABELS.items():
        rows = found[found["input"] == kind]
        parts += _section(f"Similarity on {label}", tables.similarity("", rows) if len(rows) else None)
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


def conclusion(found: pd.DataFrame, dataset: str) -> str:
    """One sentence per kind of image, of `tables.means`: whether robust models came out more alike, as measured."""
    sentences = []
    for kind, label in INPUT_LABELS.items():
        words = {"cka": "", "dis": ""}
        for measure, (standard, robust) in tables.change(found, dataset, kind).items():
            before, after = standard["mean"], robust["mean"]
            word = "more" if after > before else "less" if after < before else "no more"
            name = "CKA" if measure == "cka" else "agreement"
            words[measure] = f"{word} alike ({name} {after:.3f} against {before:.3f})"
        if all(words.values()):
            sentences.append(
                f"On {label} the models trained at eps {robust['eps']:g} are {words['cka']} in their representations "
                f"and {words['dis']} in their predictions than the standard ones."
            )
    return " ".join(sentences)
