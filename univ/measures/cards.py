"""What is known of each measure besides its formula: the names of its result files, and how figures show it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """One measure.

    Attributes:
        key: what the command line calls it.
        folder, file: results/<folder>/.../<file>_...csv, as published.
        label: how figures call `similarity`; empty for measures that they do not draw.
        similarity: score, or a column of them -> larger is more alike.
        neighbors: the files lie one folder deeper, named after the neighbour function (euc or cos_sim).
        centered: the name tells centred (`mean_`) from uncentred representations.
        normalized: the name tells normalised (`norm_`) from unnormalised representations.
        pairs: one score per pair of models; else per model (mag, con) or per set of models (amb, disc).
    """

    key: str
    folder: str
    file: str
    label: str = ""
    similarity: Callable[[Any], Any] = lambda score: score
    neighbors: bool = False
    centered: bool = False
    normalized: bool = False
    pairs: bool = True


def _negative(distance: Any) -> Any:
    return -distance


def _one_minus(distance: Any) -> Any:
    return 1 - distance


CARDS: dict[str, Card] = {
    card.key: card
    for card in (
        Card("cka", "cka", "cka", "CKA"),
        Card(
            "proc",
            "procrustes",
            "proc",
            "ProcrustesSim",
            lambda distance: (2 - distance) / 2,
            centered=True,
            normalized=True,
        ),
        Card("rtd", "rtd", "rtd", "negative RTD", _negative, centered=True),
        Card("jacc", "jaccard", "jac", "Jaccard", neighbors=True, centered=True),
        Card("rank", "rank", "rank", "rank similarity", neighbors=True, centered=True),
        Card("rank_jacc", "joint", "joint", "joint rank and Jaccard", neighbors=True, centered=True),
        Card("cos", "cos_sim", "cos_sim", "second-order cosine", centered=True),
        Card("gulp", "gulp", "gulp", "negative GULP", _negative, centered=True),
        Card("shape", "shape", "shape", "negative shape distance", _negative, centered=True),
        Card("dis", "disagreement", "dis", "agreement", _one_minus),
        Card("norm", "norm_dis", "norm_dis", "1 - normalised disagreement", _one_minus),
        Card("kappa", "kappa", "kappa", "Cohen's kappa"),
        Card("jsd", "jsd", "jsd", "JSDSim", lambda divergence: 1 - divergence / math.log(2)),
        Card("churn", "churn", "churn", "1 - surrogate churn", _one_minus),
        Card("mag", "magnitude", "mag", pairs=False),
        Card("con", "concentricity", "con", pairs=False),
        Card("amb", "ambiguity", "amb", pairs=False),
        Card("disc", "discrepancy", "dis", pairs=False),
    )
}
SHOWN: dict[str, Card] = {key: card for key, card in CARDS.items() if card.label}
"""The measures that figures draw, in their order."""


def find_card(key: str) -> Card:
    """The measure's card; one beyond the study's list gets a folder and file name that equal its key."""
    return CARDS.get(key, Card(key, key, key, centered=True))
