"""Drivers: representations or outputs by model name -> tables of scores, model x model.

`pairwise` compares all models on the same images, `rowwise` each model with all others on the images inverted through
it, `subgroups` each pair on the images on which their predictions agree and differ. Measures that share a preparation
go together: each model is prepared once, pairs are the outer loop and measures the inner one, so that a `Pair` computes
what several of them need once. A finished group of measures is handed to `on_result` before the next one starts.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from univ.measures.base import Measure, Pair, UndefinedScore, as_tensor, full_precision
from univ.measures.cka import cka, cka_measure, normalized, unbiased_hsics
from univ.measures.functional import Outputs, SetStatistic
from univ.measures.neighbors import FindNeighbors, jaccard_score
from univ.measures.procrustes import procrustes
from univ.measures.rtd import rtd
from univ.measures.statistics import Statistic

AnyMeasure = Measure | Statistic | SetStatistic


@dataclass
class Comparison:
    """What a driver found for one measure.

    Attributes:
        measure: the measure itself.
        scores: float table. `pairwise`: model x model, or one row named 0 for a statistic (columns: models; for a
            statistic of the whole set one column named after it). `rowwise`: the COLUMN is the model whose inverted
            images were used, the row the model compared with it, as published; for a statistic of the set one row
            named 0, columns: source models. An undefined score is nan, and `notes` says why.
        permuted: with permutations: table of the same shape whose cells are lists, the single scores with the second
            model's images permuted.
        spread: for measures that average over random trials: standard deviation over the trials.
        notes: one sentence for each undefined score.
        failure: why the measure could not be computed, naming the model; None if it could. `scores` is then not to
            be used.
    """

    measure: AnyMeasure
    scores: pd.DataFrame
    permuted: pd.DataFrame | None = None
    spread: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def name(self) -> str:
        return self.measure.name

    @property
    def baseline(self) -> pd.DataFrame | None:
        """Mean over the permutations, a table like `scores`; None without permutations."""
        return None if self.permuted is None else self.permuted.map(lambda cell: float(np.mean(cell)))


def pairwise(
    inputs: Mapping[str, Any],
    measures: Iterable[AnyMeasure],
    *,
    permutations: int = 0,
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
        device: where to compute; default: where each input is.
        on_result: called with each finished measure.
        quiet: no progress bars.

    Returns:
        Measure name -> `Comparison`. Symmetric measures are mirrored, and the diagonal is what a model scores
        against itself by definition. A measure that raises ValueError (k too large, NaN input …) is reported in its
        `failure`, and the others go on.
    """
    names = list(inputs)
    scorer = _Scorer(permutations, seed, device)
    results: dict[str, Comparison] = {}
    for group in _groups(measures):
        if isinstance(group[0], Measure):
            found = [_start(measure, names, names, permutations) for measure in group]
            pairs = list(itertools.combinations(names, 2))
            if not all(measure.symmetric for measure in group):
                pairs += [(b, a) for a, b in pairs]
            if permutations:
                pairs += [(name, name) for name in names]
            prepared = scorer.prepare(found, inputs, names)
            for a, b in _bar(pairs, found, quiet):
                scorer.score(found, prepared, a, b, cell=(a, b))
            for comparison in found:
                _mirror(comparison, names)
        elif isinstance(group[0], Statistic):
            found = [_start(measure, [0], names) for measure in group]
            for name in names:
                scorer.statistic(found, inputs, name, cell=(0, name))
        else:
            found = [_start(measure, [0], [measure.name]) for measure in group]
            for comparison in found:
                scorer.set_statistic(comparison, inputs, cell=(0, comparison.name))
        _finish(found, results, on_result)
    return results


def rowwise(
    names: Sequence[str],
    inputs_of: Callable[[str], Mapping[str, Any]],
    measures: Iterable[AnyMeasure],
    *,
    permutations: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_result: Callable[[Comparison], None] | None = None,
    on_source: Callable[[str, dict[str, Comparison]], None] | None = None,
    quiet: bool = False,
) -> dict[str, Comparison]:
    """Score each source model with every other one on the images inverted through the source model.

    Args:
        names: the models, each a source in turn.
        inputs_of: source model -> (model name -> its representation or `Outputs` on the source's images, same order).
            Called once per source, so that only one source's inputs need to be in memory.
        on_source: called after each source with the tables so far (nan where not reached).
        measures, permutations, seed, device, on_result, quiet: as for `pairwise`; on_result at the end.

    Returns:
        Measure name -> `Comparison`, oriented as published: cell (row j, column i) compares models i and j on the
        images of i. The diagonal of a measure is its self-score; that of a statistic is computed.
    """
    names = list(names)
    scorer = _Scorer(permutations, seed, device)
    groups = []
    for group in _groups(measures):
        rows = [0] if isinstance(group[0], SetStatistic) else names
        groups.append([_start(measure, rows, names, permutations) for measure in group])
    everything = {comparison.name: comparison for found in groups for comparison in found}
    for done, source in enumerate(names):
        inputs = inputs_of(source)
        missing = [name for name in names if name not in inputs]
        if missing:
            raise ValueError(f"the images of {source} lack the models {', '.join(missing)}")
        for found in groups:
            measure = found[0].measure
            if isinstance(measure, Measure):
                prepared = scorer.prepare(found, inputs, names, where=f"on the images of {source}")
                others = names if permutations else [name for name in names if name != source]
                for other in _bar(others, found, quiet, f" on {source} ({done + 1}/{len(names)})"):
                    scorer.score(found, prepared, source, other, cell=(other, source))
                for comparison in found:
                    comparison.scores.at[source, source] = comparison.measure.self_score
            elif isinstance(measure, Statistic):
                for name in names:
                    scorer.statistic(found, inputs, name, cell=(name, source))
            else:
                for comparison in found:
                    scorer.set_statistic(comparison, inputs, cell=(0, source))
        if on_source is not None:
            on_source(source, everything)
    results: dict[str, Comparison] = {}
    for found in groups:
        _finish(found, results, on_result)
    return results


SUBGROUP_KS = (10, 50, 100)
SUBGROUP_PERCENTS = (10.0, 1.0, 0.5)
SUBGROUP_COLUMNS = ("metric", "score", "model1", "model2", "k", "perc_k", "pred_type", "n", "spread", "note")


def subgroups(
    inputs: Mapping[str, Any],
    preds: Mapping[str, Any],
    measures: Sequence[str] = ("cka", "proc", "rtd", "jacc"),
    *,
    published: bool = False,
    size_matched: bool = False,
    function: str = "euc",
    seed: int = 0,
    workers: int | None = None,
    device: torch.device | str | None = None,
    done: Collection[tuple[str, str, str]] = (),
    on_result: Callable[[pd.DataFrame], None] | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Similarity of each pair of models on the images where their predictions agree, and on those where they differ.

    Args:
        inputs: model name -> representation (N, D). Read once per pair and measure, so it may load lazily.
        preds: model name -> predicted classes (N,) of the same images.
        measures: of cka, proc (centred, normalised), rtd, and jacc at k = 10, 50, 100 and at 10 %, 1 % and 0.5 % of
            the subgroup's size (rounded down).
        published: the original's procedure: the HSICs of the 'disagree' CKA are added to those of the 'agree' one,
            and an image is its own first Euclidean neighbour.
        size_matched: cut both groups to the size of the smaller one, at random, ten times; the mean is the score.
            Without it k-NN and RTD differ between the groups for their size alone.
        function: `euc` (the study's) or `cos_sim`, how neighbours are found.
        seed: of RTD's subsamples and of the cut groups.
        workers: threads for RTD.
        device: where to compute; default: where each input is.
        done: (metric, model1, model2) already scored, to be left out.
        on_result: called with the rows of each measure when all its pairs are done.
        quiet: no progress bars.

    Returns:
        Long table: metric, score, model1, model2, k and perc_k (one of the two for jacc, empty otherwise),
        pred_type (agree | disagree), n (images in the group), spread (of size-matched repeats, else empty) and note:
        why a score is empty, mostly that the group is too small.
    """
    unknown = set(measures) - set(SUBGROUP_MEASURES)
    if unknown:
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {', '.join(SUBGROUP_MEASURES)}")
    pairs = list(itertools.combinations(inputs, 2))
    settings = _SubgroupSettings(published, function, seed, workers)
    tables = []
    for name in measures:
        rows = []
        todo = [pair for pair in pairs if (name, *pair) not in done]
        for model1, model2 in tqdm(todo, desc=f"{name} by agreement", unit="pair", disable=quiet):
            agree = as_tensor(preds[model1]) == as_tensor(preds[model2])
            reps = [as_tensor(inputs[model]) for model in (model1, model2)]
            if not len(agree) == len(reps[0]) == len(reps[1]):
                raise ValueError(
                    f"{model1} and {model2} need representations and predictions of the same images: "
                    f"got {len(reps[0])}, {len(reps[1])} and {len(agree)}"
                )
            for row in _subgroup_rows(name, reps, agree, settings, size_matched, device):
                rows.append({"metric": name, "model1": model1, "model2": model2, **row})
        table = pd.DataFrame(rows, columns=list(SUBGROUP_COLUMNS))
        tables.append(table)
        if on_result is not None and rows:
            on_result(table)
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(SUBGROUP_COLUMNS))


@dataclass(frozen=True)
class _SubgroupSettings:
    published: bool
    function: str
    seed: int
    workers: int | None


def _subgroup_rows(
    name: str,
    reps: list[torch.Tensor],
    agree: torch.Tensor,
    settings: _SubgroupSettings,
    size_matched: bool,
    device: torch.device | str | None,
) -> Iterator[dict[str, Any]]:
    """Rows of one measure and pair: each with k, perc_k, pred_type, score, spread, n and note."""
    groups = {"agree": agree.nonzero().flatten(), "disagree": (~agree).nonzero().flatten()}
    draws = [groups]
    if size_matched:
        smaller = min(len(images) for images in groups.values())
        generator = torch.Generator().manual_seed(settings.seed)
        draws = [
            {
                kind: images[torch.randperm(len(images), generator=generator)[:smaller]]
                for kind, images in groups.items()
            }
            for _ in range(SIZE_MATCHED_REPEATS)
        ]
    values: dict[tuple, list[tuple[float, str]]] = {}
    for draw in draws:
        before = None
        for kind, images in draw.items():
            pair = [to_device(rep[images.to(rep.device)], device) for rep in reps]
            found, before = SUBGROUP_MEASURES[name](pair, settings, before)
            for (k, percent), score, note in found:
                values.setdefault((kind, len(images), k, percent), []).append((score, note))
    for (kind, n, k, percent), repeats in values.items():
        scores = [score for score, _ in repeats]
        spread = float(np.std(scores, ddof=1)) if size_matched else math.nan
        note = next((note for _, note in repeats if note), "")
        yield {
            "k": k, "perc_k": percent, "pred_type": kind, "n": n,
            "score": float(np.mean(scores)), "spread": spread, "note": note,
        }  # fmt: skip


SIZE_MATCHED_REPEATS = 10
_Found = list[tuple[tuple[int | None, float | None], float, str]]  # ((k, percent), score, note)


def _score_or_note(compute: Callable[[], float]) -> tuple[float, str]:
    """A score, or nan and why there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndefinedScore)
        try:
            return compute(), next((str(warning.message) for warning in caught), "")
        except _FAILURES as error:
            return math.nan, str(error)


def _subgroup_cka(
    reps: list[torch.Tensor], settings: _SubgroupSettings, before: Any
) -> tuple[_Found, tuple[float, float, float] | None]:
    """CKA of a group; as published on top of the HSICs of the group before it."""
    if not settings.published:
        score, note = _score_or_note(lambda: cka(*reps))
        return [((None, None), score, note)], None
    hsics = before or (0.0, 0.0, 0.0)
    note = ""
    try:
        prepare = cka_measure().prepare
        with full_precision():
            pair = Pair(prepare(reps[0]), prepare(reps[1]))
            own = unbiased_hsics(pair)
        hsics = tuple(old + new for old, new in zip(hsics, own, strict=True))
        score, note = _score_or_note(lambda: normalized(*hsics))
    except _FAILURES as error:
        score, note = math.nan, str(error)
    return [((None, None), score, note)], hsics


def _subgroup_procrustes(reps: list[torch.Tensor], settings: _SubgroupSettings, before: Any) -> tuple[_Found, None]:
    score, note = _score_or_note(lambda: procrustes(*reps))
    return [((None, None), score, note)], None


def _subgroup_rtd(reps: list[torch.Tensor], settings: _SubgroupSettings, before: Any) -> tuple[_Found, None]:
    score, note = _score_or_note(lambda: rtd(*reps, seed=settings.seed, workers=settings.workers))
    return [((None, None), score, note)], None


def _subgroup_jaccard(reps: list[torch.Tensor], settings: _SubgroupSettings, before: Any) -> tuple[_Found, None]:
    """Jaccard at every k, from one neighbour search at the largest that the group allows."""
    n = len(reps[0])
    wanted = [(k, None, k) for k in SUBGROUP_KS]
    wanted += [(None, percent, int(n * percent / 100)) for percent in SUBGROUP_PERCENTS]
    possible = [k for *_, k in wanted if 1 <= k < n]
    searched: tuple = ()
    if possible:
        find = FindNeighbors(max(possible), settings.function, published=settings.published)
        searched = tuple(find(rep) for rep in reps)
    found = []
    for k, percent, neighbors in wanted:
        if 1 <= neighbors < n:
            a, b = (model.nearest(neighbors) for model in searched)
            score, note = jaccard_score(Pair(a, b)), ""
        else:
            score, note = math.nan, f"k={neighbors} neighbours need k between 1 and {n - 1}: the group has {n} images"
        found.append(((k, percent), score, note))
    return found, None


SUBGROUP_MEASURES = {
    "cka": _subgroup_cka,
    "proc": _subgroup_procrustes,
    "rtd": _subgroup_rtd,
    "jacc": _subgroup_jaccard,
}


class _Scorer:
    """Prepares models and scores pairs; failures and undefined scores go into the comparisons, with names."""

    def __init__(self, permutations: int, seed: int, device: torch.device | str | None) -> None:
        self.permutations = permutations
        self.seed = seed
        self.device = device

    def prepare(
        self, found: list[Comparison], inputs: Mapping[str, Any], names: list[str], where: str = ""
    ) -> dict[str, Any]:
        """Model name -> prepared model, by the preparation that the measures share; {} if it failed."""
        prepared: dict[str, Any] = {}
        for name in names:
            if _failed(found):
                return {}
            try:
                prepared[name] = found[0].measure.prepare(to_device(inputs[name], self.device))
            except _FAILURES as error:
                _fail(found, f"{name} {where}".strip(), error)
        return prepared

    def score(
        self, found: list[Comparison], prepared: Mapping[str, Any], a: str, b: str, cell: tuple[Any, Any]
    ) -> None:
        """Write the scores of models a and b, and of a and permuted b, to a cell of each table."""
        if _failed(found):
            return
        if a != b:
            self._score_once(found, prepared[a], prepared[b], a, b, cell, permuted=False)
        for order in self.orders(len(prepared[b])):
            self._score_once(found, prepared[a], prepared[b].permute(order), a, b, cell, permuted=True)

    def orders(self, n: int) -> Iterator[torch.Tensor]:
        """The permutations of n images: the same for every pair of models."""
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.randperm(n, generator=generator).to(self.device) for _ in range(self.permutations))

    def _score_once(
        self, found: list[Comparison], a: Any, b: Any, name_a: str, name_b: str, cell: tuple[Any, Any], permuted: bool
    ) -> None:
        pair = None
        for comparison in found:
            if comparison.failure is not None:
                continue
            measure = comparison.measure
            try:
                with full_precision():
                    pair = pair or Pair(a, b)
                    score = _listen(comparison, f"{name_a} and {name_b}", measure.score, pair)
                    spread = measure.spread(pair) if measure.spread is not None and not permuted else None
            except _FAILURES as error:
                _fail([comparison], f"{name_a} and {name_b}", error)
                continue
            if permuted:
                comparison.permuted.at[cell].append(score)
            else:
                comparison.scores.at[cell] = score
            if spread is not None:
                comparison.spread.at[cell] = spread

    def statistic(self, found: list[Comparison], inputs: Mapping[str, Any], name: str, cell: tuple[Any, Any]) -> None:
        """Write the statistics of one model to a cell of each table."""
        for comparison in found:
            if comparison.failure is None:
                rep = to_device(inputs[name], self.device)
                try:
                    comparison.scores.at[cell] = _listen(comparison, name, comparison.measure, rep)
                except _FAILURES as error:
                    _fail([comparison], name, error)

    def set_statistic(self, comparison: Comparison, inputs: Mapping[str, Any], cell: tuple[Any, Any]) -> None:
        """Write the statistic of the whole set of models to a cell of its table."""
        prepared = self.prepare([comparison], inputs, list(inputs))
        if comparison.failure is None:
            try:
                comparison.scores.at[cell] = comparison.measure.compute(list(prepared.values()))
            except _FAILURES as error:
                _fail([comparison], "the set of models", error)


_FAILURES = (ValueError, torch.linalg.LinAlgError)  # what a measure says about its input, or LAPACK about a matrix


def to_device(value: Any, device: torch.device | str | None) -> Any:
    """A representation, or the logits and labels of `Outputs`, on `device` (None: where it is)."""
    if device is None:
        return value
    if isinstance(value, Outputs):
        return Outputs(
            to_device(value.logits, device), None if value.labels is None else to_device(value.labels, device)
        )
    return as_tensor(value).to(device)


def _groups(measures: Iterable[AnyMeasure]) -> list[list[AnyMeasure]]:
    """Measures that share a preparation, in the order in which the first of each group was asked for."""
    groups: dict[Any, list[AnyMeasure]] = {}
    for measure in measures:
        key = measure.prepare if isinstance(measure, Measure) else measure.name
        groups.setdefault(key, []).append(measure)
    names = [measure.name for group in groups.values() for measure in group]
    if len(set(names)) < len(names):
        raise ValueError(f"each measure can be asked for once, got {', '.join(names)}")
    return list(groups.values())


def _start(measure: AnyMeasure, rows: list, columns: list, permutations: int = 0) -> Comparison:
    scores = pd.DataFrame(np.nan, index=rows, columns=columns, dtype=float)
    comparison = Comparison(measure, scores)
    if isinstance(measure, Measure):
        if permutations:
            comparison.permuted = pd.DataFrame([[[] for _ in columns] for _ in rows], index=rows, columns=columns)
        if measure.spread is not None:
            comparison.spread = pd.DataFrame(0.0, index=rows, columns=columns)
    return comparison


def _mirror(comparison: Comparison, names: list[str]) -> None:
    """Copy the upper triangle of a symmetric measure to the lower one, and set the diagonal to the self-score."""
    if comparison.measure.symmetric:
        tables = [table for table in (comparison.scores, comparison.spread, comparison.permuted) if table is not None]
        for (a, b), table in itertools.product(itertools.combinations(names, 2), tables):
            table.at[b, a] = table.at[a, b]
    for name in names:
        comparison.scores.at[name, name] = comparison.measure.self_score


def _finish(
    found: list[Comparison], results: dict[str, Comparison], on_result: Callable[[Comparison], None] | None
) -> None:
    for comparison in found:
        results[comparison.name] = comparison
        if on_result is not None:
            on_result(comparison)


def _failed(found: list[Comparison]) -> bool:
    return all(comparison.failure is not None for comparison in found)


def _fail(found: list[Comparison], subject: str, error: Exception) -> None:
    for comparison in found:
        if comparison.failure is None:
            comparison.failure = f"{subject}: {error}"


def _listen(comparison: Comparison, subject: str, compute: Callable[[Any], float], argument: Any) -> float:
    """`compute(argument)`, with the reason of an undefined score noted; other warnings pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndefinedScore)
        score = compute(argument)
    for warning in caught:
        if issubclass(warning.category, UndefinedScore):
            comparison.notes.append(f"{subject}: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return score


def _bar(steps: list, found: list[Comparison], quiet: bool, where: str = "") -> tqdm:
    names = ", ".join(comparison.name for comparison in found)
    return tqdm(steps, desc=names + where, unit="pair", disable=quiet or _failed(found))
