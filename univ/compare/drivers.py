"""Drivers: representations or outputs by model name -> tables of scores, model x model.

`pairwise` compares all models on the same images, `rowwise` each model with all others on the images inverted through
it. Measures that share a preparation go together; a finished group of them is handed to `on_result` before the next one
starts.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from univ.compare.scoring import AnyMeasure, Cells, Comparison, Scorer, reported, to_device
from univ.measures.base import Measure
from univ.measures.cka import cka_measure
from univ.measures.functional import SetStatistic
from univ.measures.statistics import Statistic


def pairwise(
    inputs: Mapping[str, Any],
    measures: Iterable[AnyMeasure],
    *,
    permutations: int = 0,
    ci: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_result: Callable[[Comparison], None] | None = None,
    quiet: bool = False,
) -> dict[str, Comparison]:
    """Score every pair of models on the same images.

    Args:
        inputs: model name -> representation (N, D), or `Outputs` for functional measures; row i of all of them from
            the same image. Read once per group of measures, so it may load lazily.
        measures: what to compute; several of them at once share what they can.
        permutations: how often to score each pair (and each model with itself) with the second model's images
            permuted at random: the baseline. The permutations depend on `seed` and N alone.
        ci: level of confidence intervals over images, e.g. 0.95; None for none. Functional measures: percentiles of
            1000 bootstrap samples of the images. Representational ones: the score -+ Student's t times the standard
            error of a delete-group jackknife (20 random groups, each left out in turn; 20 times the time), because
            duplicated images would break k-NN and debiased CKA. RTD: -+ Student's t times the standard error
            over its trials. On the diagonal the ends are the self-score.
        seed: of permutations, bootstrap samples and jackknife groups.
        device: where to compute; default: where each input is.
        on_result: called with each finished measure.
        quiet: no progress bars.

    Returns:
        Measure name -> `Comparison`. Symmetric measures are mirrored, and the diagonal is what a model scores
        against itself by definition. A measure that raises ValueError (k too large, NaN input …) or runs out of
        memory is reported in its `failure`, and the others go on.
    """
    scorer = Scorer(permutations, ci, seed, device, quiet)
    return _drive(list(inputs), [""], lambda _: inputs, measures, scorer, on_result)


def rowwise(
    names: Sequence[str],
    inputs_of: Callable[[str], Mapping[str, Any]],
    measures: Iterable[AnyMeasure],
    *,
    permutations: int = 0,
    ci: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_result: Callable[[Comparison], None] | None = None,
    quiet: bool = False,
) -> dict[str, Comparison]:
    """Score each source model with every other one on the images inverted through the source model.

    Args:
        names: the models, each a source in turn.
        inputs_of: source model -> (model name -> its representation or `Outputs` on the source's images, same order).
            Called once per source, so that only one source's inputs need to be in memory.
        measures, permutations, ci, seed, device, on_result, quiet: as for `pairwise`.

    Returns:
        Measure name -> `Comparison`, oriented as published: cell (row j, column i) compares models i and j on the
        images of i. The diagonal of a measure is its self-score; that of a statistic is computed.
    """

    def checked(source: str) -> Mapping[str, Any]:
        inputs = inputs_of(source)
        if missing := [name for name in names if name not in inputs]:
            raise ValueError(f"the images of {source} lack the models {', '.join(missing)}")
        return inputs

    scorer = Scorer(permutations, ci, seed, device, quiet)
    return _drive(list(names), list(names), checked, measures, scorer, on_result)


def stir(
    targets: Mapping[str, Any],
    inverted_of: Callable[[str], Mapping[str, Any]],
    *,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> Comparison:
    """STIR: does model j see the images inverted through model i as i does, that is, as their targets?

    Score of (j | i) = CKA between j's representations of the target images and j's of the images that were inverted
    through i towards them. At most 1, 1 = j shares the invariances of i. Directional.

    Args:
        targets: model name -> its representation (N, D) of the target images.
        inverted_of: source model i -> (model name -> its representation of i's inverted images, in target order).
        device, quiet: as for `rowwise`.

    Returns:
        Comparison named `stir`, oriented as `rowwise`: cell (row j, column i). The diagonal, how well the inversion
        itself succeeded, is computed.

    Source: Nanda et al., NeurIPS 2022 (Measuring representational robustness …), equation 1, with unbiased CKA.
    """
    names = list(targets)
    measure = replace(cka_measure(), name="stir", self_score=None, symmetric=False)
    comparison = Comparison(measure, pd.DataFrame(math.nan, index=names, columns=names))
    prepared: dict[str, Any] = {}
    for source in tqdm(names, desc="stir", unit="source", disable=quiet):
        inverted = inverted_of(source)
        for name in names:
            with reported([comparison], f"{name} on the images of {source}"):
                if name not in prepared:
                    prepared[name] = measure.prepare(to_device(targets[name], device))
                seen = measure.prepare(to_device(inverted[name], device))
                comparison.scores.at[name, source] = measure.compare(prepared[name], seen)
            if comparison.failure is not None:
                return comparison
    return comparison


def _groups(measures: Iterable[AnyMeasure]) -> list[tuple[Callable[[Any], Any], list[AnyMeasure]]]:
    """(preparation, the measures that it serves), in the order in which the first of each group was asked for."""
    groups: list[tuple[Callable[[Any], Any], list[AnyMeasure]]] = []
    for measure in measures:
        prepare = _as_it_is if isinstance(measure, Statistic) else measure.prepare
        for position, (shared, group) in enumerate(groups):
            both = isinstance(measure, Measure) and isinstance(group[0], Measure)
            if both and (prepare.covers(shared) or shared.covers(prepare)):
                groups[position] = (prepare if prepare.covers(shared) else shared, [*group, measure])
                break
        else:
            groups.append((prepare, [measure]))
    names = [measure.name for _, group in groups for measure in group]
    if len(set(names)) < len(names):
        raise ValueError(f"each measure can be asked for once, got {', '.join(names)}")
    return groups


def _as_it_is(rep: Any) -> Any:
    """The preparation of a statistic."""
    return rep


def _drive(
    names: list[str],
    sources: list[str],
    inputs_of: Callable[[str], Mapping[str, Any]],
    measures: Iterable[AnyMeasure],
    scorer: Scorer,
    on_result: Callable[[Comparison], None] | None,
) -> dict[str, Comparison]:
    """Score `names` on the images of every source; one that is empty stands for images that all models see."""
    groups = []
    for prepare, group in _groups(measures):
        groups.append((prepare, [scorer.start(measure, *_axes(measure, names, sources)) for measure in group]))
    for number, source in enumerate(sources, 1):
        inputs = inputs_of(source)
        where, progress = (f" on the images of {source}", f" ({number}/{len(sources)})") if source else ("", "")
        for prepare, comparisons in groups:
            cells = _cells([comparison.measure for comparison in comparisons], names, source, scorer.permutations > 0)
            scorer.fill(comparisons, prepare, inputs, cells, where, progress)
            for comparison in comparisons if number == len(sources) else ():
                comparison.complete(mirror=not source)
                if on_result is not None:
                    on_result(comparison)
    return {comparison.name: comparison for _, comparisons in groups for comparison in comparisons}


def _axes(measure: AnyMeasure, names: list[str], sources: list[str]) -> tuple[list, list]:
    """Rows and columns of a measure's table, see `Comparison.scores`."""
    shared, of_set = sources == [""], isinstance(measure, SetStatistic)
    rows = [0] if of_set or (shared and isinstance(measure, Statistic)) else names
    return rows, [measure.name] if of_set and shared else names


def _cells(group: list[AnyMeasure], names: list[str], source: str, permuted: bool) -> Cells:
    """What is scored on the images of a source: model, pair or set of models -> its cell."""
    first = group[0]
    if isinstance(first, SetStatistic):
        return {tuple(names): (0, source or first.name)}
    if isinstance(first, Statistic):
        return {(name,): (name, source) if source else (0, name) for name in names}
    with_itself = permuted or any(measure.self_score is None for measure in group)
    if source:
        return {(source, other): (other, source) for other in names if with_itself or other != source}
    pairs = list(itertools.combinations(names, 2))
    if not all(measure.symmetric for measure in group):
        pairs += [(b, a) for a, b in pairs]
    return {pair: pair for pair in [*pairs, *((name, name) for name in names if with_itself)]}
