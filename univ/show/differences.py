"""Tests of differences between groups of scores in which the models, not the pairs, are the units."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from univ.measures.cards import SHOWN, find_card
from univ.show import evidence

EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated, more are drawn


@dataclass(frozen=True)
class Difference:
    """Mean difference over pairs of models, and how surprising it is.

    Attributes:
        p: two-sided p-value; nan where `note` says why.
        models: number of architectures, which are the units.
        smallest_p: the smallest p-value that so many can give.
        half: half the width of the jackknife's 95 % interval (`evidence.over_architectures`); nan without one.
    """

    mean: float
    p: float
    models: int
    smallest_p: float
    half: float = math.nan
    note: str = ""


def model_level_test(differences: Mapping[tuple[str, str], float], *, draws: int = 10_000, seed: int = 0) -> Difference:
    """Permutation test of "the mean difference over pairs is zero" in which the models are the units.

    Pairs that share a model are not independent: with m models, m(m-1)/2 differences hold about m independent pieces
    of information. So each difference is split by least squares into one share per model, d_ij = u_i + u_j + rest, and
    the labels of the two groups (agree and disagree, say) are swapped model by model: u_i changes its sign. The mean
    difference of all 2^m swaps is compared with the one seen. Assumed is that under the null the shares u_i are
    symmetric around zero, as they are if swapping a model's labels changes nothing; models that are merely exchangeable
    with each other are not enough (skewed shares: 10 to 15 % false positives at 5 %). Shares that the pairs there are
    do not identify, as with pairs between two groups of models only, give no p-value. With 4 models the test has no
    power, its smallest p being 0.125: the jackknife's interval stands beside it. Models that differ in their seeds
    alone (`resnet18@0`, `resnet18@1`) are one unit.

    Against it, a permutation of single scores that counts each pair twice calls 30 to 50 % of purely random model
    effects significant at 5 % (tests/test_differences.py).

    Args:
        differences: unordered pair of models -> difference; nan values (a group was too small) are left out.
        draws, seed: with more than 14 models the swaps are drawn at random, and the p-value counts the one seen.
    """
    pairs = {pair: value for pair, value in differences.items() if not math.isnan(value)}
    units = [tuple(map(evidence.architecture, pair)) for pair in pairs]
    models = sorted({model for pair in units for model in pair})
    mean = float(np.mean(list(pairs.values()))) if pairs else math.nan
    half = evidence.over_architectures(pairs.items()).half()
    if len(models) < 3:
        note = f"{len(models)} architectures are too few to swap" if pairs else ""
        return Difference(mean, math.nan, len(models), math.nan, half, note)
    design = np.array([[float(pair.count(model)) for model in models] for pair in units])
    if np.linalg.matrix_rank(design) < len(models):
        note = "the pairs there are do not tell the shares of their models apart"
        return Difference(mean, math.nan, len(models), math.nan, half, note)
    shares = np.linalg.lstsq(design, np.array(list(pairs.values())), rcond=None)[0]
    weights = design.mean(axis=0) * shares  # the mean difference is their sum
    if len(models) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((1, -1), repeat=len(models))))
        smallest = 2 / len(signs)
    else:
        signs = np.random.default_rng(seed).choice((1, -1), size=(draws, len(models)))
        signs = np.vstack([np.ones(len(models)), signs])
        smallest = 1 / len(signs)
    swapped = np.abs(signs @ weights)
    p = float((swapped >= abs(weights.sum()) * (1 - 1e-9)).mean())
    return Difference(mean, p, len(models), smallest, half)


def by_pair(subgroups: pd.DataFrame) -> pd.DataFrame:
    """Mean similarity of each unordered pair of models (rows) where it agrees and where it disagrees (columns).

    Args:
        subgroups: rows of one metric, k, eps and data set with the columns model1, model2, pred_type and similarity.
    """
    pair = [tuple(sorted(models)) for models in zip(subgroups["model1"], subgroups["model2"])]
    scores = subgroups.assign(pair=pair).pivot_table(index="pair", columns="pred_type", values="similarity")
    return scores.reindex(columns=["agree", "disagree"])


def subgroup_difference(subgroups: pd.DataFrame) -> Difference:
    """Similarity where two models agree minus where they differ, tested at the level of models; see `by_pair`."""
    scores = by_pair(subgroups)
    return model_level_test((scores["agree"] - scores["disagree"]).to_dict())


def subgroup_rows(subgroups: pd.DataFrame, metric: str, k: int | None = None) -> pd.DataFrame:
    """The rows of one metric, for neighbour-based ones at a fixed k, with the column `similarity`; scores that could
    not be computed are left out."""
    rows = subgroups[(subgroups["metric"] == metric) & subgroups["score"].notna()]
    if find_card(metric).neighbors:
        rows = rows[(rows["k"] == k) & rows["perc_k"].isna()]
    return rows.assign(similarity=SHOWN[metric].similarity(rows["score"]))
