"""Similarity on the images on which two models agree, and on those on which they differ -> one long table."""

import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from univ import results
from univ.compare.scoring import FAILURES, to_device
from univ.measures import REP_MEASURES, Measure, Pair, UndefinedScore, build
from univ.measures.base import as_tensor, full_precision
from univ.measures.cards import in_study
from univ.measures.cka import normalized, unbiased_hsics

MEASURES = in_study("reps")
KS = (10, 50, 100)
PERCENTS = (10.0, 1.0, 0.5)
REPEATS = 10
COLUMNS = [*(name for name in results.SUBGROUP_COLUMNS if name != "eps"), "n", "n_group", "spread", "note"]


def subgroups(
    inputs: Mapping[str, Any],
    preds: Mapping[str, Any],
    measures: Sequence[str] = MEASURES,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    published: bool = False,
    size_matched: bool | None = None,
    function: str = "euc",
    seed: int = 0,
    workers: int | None = None,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Similarity of each pair of models on the images where their predictions agree, and on those where they differ.

    Args:
        inputs: model name -> representation (N, D). Read once per pair and measure, so it may load lazily.
        preds: model name -> predicted classes (N,) of the same images.
        measures: of cka, proc (centred, normalised), rtd, and jacc at k = 10, 50, 100 and at 10 %, 1 % and 0.5 % of
            the subgroup's size (rounded down).
        pairs: what to score; default: every two models.
        published: the original's procedure: the groups have the sizes they have, the HSICs of the 'disagree' CKA are
            added to those of the 'agree' one, and an image is its own first Euclidean neighbour.
        size_matched: cut the larger group to the size of the smaller one, at random, ten times; the mean is the
            score. Default: unless published. Without it Procrustes, k-NN and RTD differ between the groups for their
            sizes alone (tests/simulations/test_subgroups.py).
        function: `euc` (the study's) or `cos_sim`, how neighbours are found.
        seed: of RTD's subsamples and of the cut groups.
        workers: threads for RTD.
        device: where to compute; default: where each input is.
        quiet: no progress bars.

    Returns:
        Long table: metric, score, model1, model2, k and perc_k (one of the two for jacc, empty otherwise),
        pred_type (agree | disagree), n (images compared), n_group (images in the group before the cut), spread
        (standard deviation over the ten cuts, 0 in the smaller group, empty where nothing is cut) and note: why a
        score is empty, mostly that the smaller group is too small.
    """
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {', '.join(MEASURES)}")
    size_matched = not published if size_matched is None else size_matched
    options = {"k": max(KS), "function": function, "published": published, "seed": seed, "workers": workers}
    pairs = list(itertools.combinations(inputs, 2)) if pairs is None else pairs
    rows = []
    for measure in build(REP_MEASURES, measures, **options):
        for model1, model2 in tqdm(pairs, desc=f"{measure.name} by agreement", unit="pair", disable=quiet):
            agree = as_tensor(preds[model1]) == as_tensor(preds[model2])
            reps = [as_tensor(inputs[model]) for model in (model1, model2)]
            if not len(agree) == len(reps[0]) == len(reps[1]):
                raise ValueError(
                    f"{model1} and {model2} need representations and predictions of the same images: "
                    f"got {len(reps[0])}, {len(reps[1])} and {len(agree)}"
                )
            scores = defaultdict(list)
            sizes = {"agree": int(agree.sum()), "disagree": int((~agree).sum())}
            once = measure.per_trial is None and not published  # neither draws of its own nor the group before it
            for number, draw in enumerate(_draws(agree, seed if size_matched else None)):
                hsics = [0.0, 0.0, 0.0] if published else None
                for group, images in draw.items():
                    if number and once and len(images) == sizes[group]:
                        continue  # the whole group in another order
                    x, y = (to_device(rep[images.to(rep.device)], device) for rep in reps)
                    for k, percent, score, note in _scores(measure, x, y, hsics):
                        scores[group, len(images), k, percent].append((score, note))
            for (group, n, k, percent), repeats in scores.items():
                values = [score for score, _ in repeats]
                note = next((note for _, note in repeats if note), "")
                about = {"metric": measure.name, "model1": model1, "model2": model2, "note": note}
                about |= {"k": k, "perc_k": percent, "pred_type": group, "n": n, "n_group": sizes[group]}
                rows.append({**about, "score": float(np.mean(values)), "spread": _spread(values, size_matched)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _spread(repeats: list[float], size_matched: bool) -> float:
    if not size_matched or math.isnan(repeats[0]):
        return math.nan
    return float(np.std(repeats, ddof=1)) if len(repeats) > 1 else 0.0


def _draws(agree: Tensor, seed: int | None) -> list[dict[str, Tensor]]:
    """The images of both groups; with a seed, ten draws of as many from each as the smaller one holds."""
    groups = {"agree": agree.nonzero().flatten(), "disagree": (~agree).nonzero().flatten()}
    if seed is None:
        return [groups]
    smaller = min(map(len, groups.values()))
    generator = torch.Generator().manual_seed(seed)

    def cut(images: Tensor) -> Tensor:
        return images[torch.randperm(len(images), generator=generator)[:smaller]]

    return [{group: cut(images) for group, images in groups.items()} for _ in range(REPEATS)]


def _scores(
    measure: Measure, x: Tensor, y: Tensor, hsics: list[float] | None
) -> Iterator[tuple[int | None, float | None, float, str]]:
    """(k, percent, score, note) of a group; `hsics` are those of the groups before it, for the published CKA."""
    if measure.name == "jacc":
        yield from _at_every_k(measure, x, y)
    elif measure.name == "cka" and hsics is not None:
        yield None, None, *_score_or_note(partial(_accumulated_cka, measure, x, y, hsics))
    else:
        yield None, None, *_score_or_note(partial(measure, x, y))


def _score_or_note(compute: Callable[[], float]) -> tuple[float, str]:
    """A score, or nan and why there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndefinedScore)
        try:
            return compute(), next((str(warning.message) for warning in caught), "")
        except FAILURES as error:
            return math.nan, str(error)


def _accumulated_cka(measure: Measure, x: Tensor, y: Tensor, hsics: list[float]) -> float:
    """CKA of the HSICs of a group added to those of the groups before it, as in the original."""
    with full_precision():
        own = unbiased_hsics(Pair(measure.prepare(x), measure.prepare(y)))
    hsics[:] = [before + new for before, new in zip(hsics, own, strict=True)]
    return normalized(*hsics)


def _at_every_k(measure: Measure, x: Tensor, y: Tensor) -> Iterator[tuple[int | None, float | None, float, str]]:
    """A neighbour measure at every k, from one ordered search at the largest that the group allows."""
    n = len(x)
    wanted = [(k, None, k) for k in KS] + [(None, percent, int(n * percent / 100)) for percent in PERCENTS]
    possible = [k for *_, k in wanted if 1 <= k < n]
    models = []
    if possible:
        find = replace(measure.prepare, k=max(possible), ordered=True)
        models = [find(rep) for rep in (x, y)]
    for k, percent, neighbors in wanted:
        if neighbors in possible:
            yield k, percent, measure.score(Pair(*(model.nearest(neighbors) for model in models))), ""
        else:
            note = f"k={neighbors} neighbours need k between 1 and {n - 1}: the group has {n} images"
            yield k, percent, math.nan, note
