"""Everything a results folder holds on pairs of models, as long tables for statistics of one's own."""

from typing import Any

import numpy as np
import pandas as pd
from loguru import logger

from univ.measures.cards import find_card
from univ.show import quantities, tables
from univ.show.evidence import architecture
from univ.show.sources import Sources

SETTINGS = ["knn", "images", "widths"]
CELL = ["model1", "model2", "measure", "eps", "dataset", "input", "exp"]
SCORE_COLUMNS = [
    *("dataset", "input", "kind", "exp", "measure", "k", "eps", "model1", "model2", "architecture1", "architecture2"),
    *("score", "low", "high", "level", "similarity", "baseline", "p_value", "calibrated"),
    *("images", "width1", "width2", "comparable"),
]
EVIDENCE_COLUMNS = [
    *("dataset", "input", "measure", "k", "within", "quantity", "eps", "estimate", "low", "high", "spread", "n"),
    *("architectures", "p", "equivalence_p", "verdict", "note"),
]


def scores(sources: Sources) -> pd.DataFrame:
    """Every score of two models, one row each.

    Returns:
        SCORE_COLUMNS. On inverted images model1 is the model whose images were used. low, high: the interval of the
        score over images at `level`, where --ci wrote one; similarity: the score turned so that larger is more alike,
        for measures that figures draw; baseline, p_value, calibrated: where -p wrote them; width1, width2: columns of
        the representations, where known. Scores of one measure with different `comparable` must not be set side by
        side: the measure depends on what it names; empty where it depends on nothing of the kind.
    """
    parts = []
    for kind in ("plain", *(kind for kind in sources.kinds if "base" not in kind.split("+"))):
        table = sources.long_table(kind, SETTINGS).assign(kind=kind)
        base = "base" if kind == "plain" else f"{kind}+base"
        table = _with(table, sources.companions("ci", kind), ["low", "high", "level"])
        table = _with(table, sources.companions("pvalue", base), ["p_value"])
        table = _with(table, sources.companions("calibrated", base), ["calibrated"])
        permuted = sources.long_table(base, []).rename(columns={"score": "baseline"})
        parts.append(table.merge(permuted, how="left", on=CELL))
    table = pd.concat(parts, ignore_index=True)
    table["similarity"] = quantities.with_similarity(table)["similarity"]  # nan where figures know none
    for side in "12":
        model = table[f"model{side}"]
        widths = [of.get(name) if isinstance(of, dict) else None for of, name in zip(table["widths"], model)]
        table[f"architecture{side}"], table[f"width{side}"] = model.map(architecture), pd.array(widths, "Int64")
    table["k"] = table["knn"].where(table["measure"].map(lambda key: find_card(key).neighbors).astype(bool))
    table["comparable"] = [_conditions(row) for row in table.itertuples()]
    return table[SCORE_COLUMNS]


def _with(table: pd.DataFrame, beside: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The table with columns of what lies beside its scores; empty where that was made with another score."""
    rows = beside.drop_duplicates(CELL).rename(columns={"score": "made_with"})[[*CELL, "made_with", *columns]]
    table = table.merge(rows, how="left", on=CELL)
    stale = table["made_with"].notna() & ~np.isclose(table["made_with"].astype(float), table["score"], rtol=1e-6)
    if stale.any():
        names = ", ".join(sorted(set(table.loc[stale, "measure"])))
        logger.warning("{} of {} were made with other scores than there are now: left out", "/".join(columns), names)
        table.loc[stale, columns] = np.nan
    return table.drop(columns="made_with")


def _conditions(row: Any) -> str:
    """What the expectation of a score depends on besides the models: such as `360 images, k = 10, width 64 and 512`."""
    if not quantities.depends_on_size(row.measure):
        return ""
    words = [f"{row.images:g} images" if row.images == row.images else "images unknown"]
    words += [f"k = {row.k:g}"] if row.k == row.k else []
    widths = sorted({int(width) for width in (row.width1, row.width2) if not pd.isna(width)})
    return ", ".join([*words, *([f"width {' and '.join(map(str, widths))}"] if widths else [])])


def evidence(sources: Sources) -> pd.DataFrame:
    """What the report's tables of similarity show, with all digits.

    Returns:
        EVIDENCE_COLUMNS: a row for each mean (`quantity` mean, at one eps; spread is the standard deviation between its
        n pairs) and each rise over eps (`quantity` rise, eps empty) with its p-values, corrected for the measures of
        its data set and kind of images, and verdict. low, high: the 95 % interval over architectures. All in units of
        the similarity, in which larger is more alike.
    """
    means = (
        tables.means(sources.scores, sources.accuracies).assign(quantity="mean").rename(columns={"mean": "estimate"})
    )
    changes = tables.rises(sources.scores, sources.accuracies, sources.margin)
    changes = changes.assign(quantity="rise").rename(columns={"rise": "estimate"})
    parts = [part for part in (means, changes) if len(part)] or [means]
    table = pd.concat(parts, ignore_index=True).rename(columns={"knn": "k"})
    return table.reindex(columns=EVIDENCE_COLUMNS)
