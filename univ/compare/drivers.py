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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from univ.measures.base import Measure, Pair, Preparation, UndefinedScore, as_tensor, full_precision
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
        low, high: with ci: the ends of the confidence intervals.
        notes: one sentence for each undefined score.
        failure: why the measure could not be computed, naming the model; None if it could. `scores` is then not to
            be used.
    """

    measure: AnyMeasure
    scores: pd.DataFrame
    permuted: pd.DataFrame | None = None
    spread: pd.DataFrame | None = None
    low: pd.DataFrame | None = None
    high: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def name(self) -> str:
        return self.measure.name

    @property
    def baseline(self) -> pd.DataFrame | None:
        """Mean over the permutations, a table like `scores`; None without permutations."""
        return None if self.permuted is None else self.permuted.map(lambda cell: float(np.mean(cell)))

    @property
    def p_values(self) -> pd.DataFrame | None:
        """Add-one permutation p-value of each score, one-sided: (1 + null at least as close) / (1 + permutations).

        Its smallest value is 1 / (1 + permutations). None without permutations; nan on the diagonal.
        """
        return self._with_null(lambda score, null: (1 + np.sum(null >= score)) / (1 + len(null)))

    def calibrated(self, level: float = 0.95) -> pd.DataFrame | None:
        """max(0, s - t) / (s_max - t): 1 for identical models, 0 for scores that the null reaches.

        t is the order statistic ceil(level (K + 1)) of the K permuted scores and the observed one, on their closer
        side, s_max what a model scores against itself: unrelated models are above 0 in at most 1 - level of all cases,
        whatever K. Below K = level / (1 - level) (19 at 0.95) nothing is above 0; 199 and more tell scores apart. The
        bias that width and N give to a measure (biased CKA, k-NN) is in the null too, so calibrated scores of models
        of different widths can be compared. None without permutations; nan on the diagonal.

        Source: Gröger, Wen and Brbić, ICML 2026 (arXiv 2602.14486), algorithm 1.

        Raises:
            ValueError: the measure has no fixed score for identical models.
        """
        if self.permuted is not None and self.measure.self_score is None:
            raise ValueError(f"{self.name} has no fixed score for identical models to calibrate with")
        best = self._sign * (self.measure.self_score or 0.0)

        def calibrate(score: float, null: np.ndarray) -> float:
            rank = math.ceil(level * (len(null) + 1) - 1e-9)  # 0.95 * 20 is 19, whatever its rounding
            threshold = np.sort([*null, score])[rank - 1]
            return (score - threshold) / (best - threshold) if score > threshold else 0.0

        return self._with_null(calibrate)

    @property
    def _sign(self) -> int:
        return 1 if self.measure.larger_is_closer else -1

    def _with_null(self, compute: Callable[[float, np.ndarray], float]) -> pd.DataFrame | None:
        """`compute(score, null)` for each pair of models, both with the sign that makes larger closer."""
        if self.permuted is None:
            return None
        table = self.scores.copy()
        for row, column in itertools.product(table.index, table.columns):
            score, null = table.at[row, column], np.array(self.permuted.at[row, column])
            undefined = row == column or np.isnan(score) or np.isnan(null).any()
            table.at[row, column] = math.nan if undefined else compute(self._sign * score, self._sign * null)
        return table


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
    names = list(inputs)
    scorer = _Scorer(permutations, ci, seed, device, quiet)
    results: dict[str, Comparison] = {}
    for group in _groups(measures):
        first = group.measures[0]
        if isinstance(first, Measure):
            pairs = list(itertools.combinations(names, 2))
            if not all(measure.symmetric for measure in group.measures):
                pairs += [(b, a) for a, b in pairs]
            if permutations or any(measure.self_score is None for measure in group.measures):
                pairs += [(name, name) for name in names]
            rows, columns, cells = names, names, {pair: pair for pair in pairs}
        elif isinstance(first, Statistic):
            rows, columns, cells = [0], names, {(name,): (0, name) for name in names}
        else:
            rows, columns, cells = [0], [first.name], {tuple(names): (0, first.name)}
        found = [_start(measure, rows, columns, scorer) for measure in group.measures]
        scorer.fill(found, group.prepare, inputs, cells)
        for comparison in found:
            if isinstance(first, Measure):
                _mirror(comparison, names)
            _set_diagonal(comparison, names)
        _finish(found, results, on_result)
    return results


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
    on_source: Callable[[str, dict[str, Comparison]], None] | None = None,
    quiet: bool = False,
) -> dict[str, Comparison]:
    """Score each source model with every other one on the images inverted through the source model.

    Args:
        names: the models, each a source in turn.
        inputs_of: source model -> (model name -> its representation or `Outputs` on the source's images, same order).
            Called once per source, so that only one source's inputs need to be in memory.
        on_source: called after each source with the tables so far (nan where not reached).
        measures, permutations, ci, seed, device, on_result, quiet: as for `pairwise`; on_result at the end.

    Returns:
        Measure name -> `Comparison`, oriented as published: cell (row j, column i) compares models i and j on the
        images of i. The diagonal of a measure is its self-score; that of a statistic is computed.
    """
    names = list(names)
    scorer = _Scorer(permutations, ci, seed, device, quiet)
    groups = []
    for group in _groups(measures):
        rows = [0] if isinstance(group.measures[0], SetStatistic) else names
        groups.append((group.prepare, [_start(measure, rows, names, scorer) for measure in group.measures]))
    everything = {comparison.name: comparison for _, found in groups for comparison in found}
    for done, source in enumerate(names):
        inputs = inputs_of(source)
        missing = [name for name in names if name not in inputs]
        if missing:
            raise ValueError(f"the images of {source} lack the models {', '.join(missing)}")
        for prepare, found in groups:
            measure = found[0].measure
            if isinstance(measure, Measure):
                diagonal = permutations or any(comparison.measure.self_score is None for comparison in found)
                cells = {(source, other): (other, source) for other in names if diagonal or other != source}
            elif isinstance(measure, Statistic):
                cells = {(name,): (name, source) for name in names}
            else:
                cells = {tuple(names): (0, source)}
            scorer.fill(found, prepare, inputs, cells, f" on the images of {source}", f" ({done + 1}/{len(names)})")
            for comparison in found:
                _set_diagonal(comparison, [source])
        if on_source is not None:
            on_source(source, everything)
    results: dict[str, Comparison] = {}
    for _, found in groups:
        _finish(found, results, on_result)
    return results


def stir(
    targets: Mapping[str, Any],
    inverted_of: Callable[[str], Mapping[str, Any]],
    *,
    device: torch.device | str | None = None,
    on_result: Callable[[Comparison], None] | None = None,
    quiet: bool = False,
) -> Comparison:
    """STIR: does model j see the images inverted through model i as i does, that is, as their targets?

    Score of (j | i) = CKA between j's representations of the target images and j's of the images that were inverted
    through i towards them. At most 1, 1 = j shares the invariances of i. Directional.

    Args:
        targets: model name -> its representation (N, D) of the target images.
        inverted_of: source model i -> (model name -> its representation of i's inverted images, in target order).
        device, on_result, quiet: as for `rowwise`.

    Returns:
        Comparison named `stir`, oriented as `rowwise`: cell (row j, column i). The diagonal, how well the inversion
        itself succeeded, is computed.

    Source: Nanda et al., NeurIPS 2022 (Measuring representational robustness …), equation 1, with unbiased CKA.
    """
    names = list(targets)
    measure = replace(cka_measure(), name="stir", self_score=None, symmetric=False)
    scorer = _Scorer(0, None, 0, device, quiet)
    comparison = _start(measure, names, names, scorer)
    prepared: dict[str, Any] = {}
    for source in tqdm(names, desc="stir", unit="source", disable=quiet):
        inverted = inverted_of(source)
        for name in names:
            where = f"{name} on the images of {source}"
            try:
                if name not in prepared:
                    prepared[name] = measure.prepare(to_device(targets[name], device))
                seen = measure.prepare(to_device(inverted[name], device))
                pair = Pair(prepared[name], seen)
            except _FAILURES as error:
                _fail([comparison], where, error)
                break
            scorer._try(comparison, where, (name, source), measure.score, pair)
    if on_result is not None:
        on_result(comparison)
    return comparison


BOOTSTRAP_DRAWS = 1000
JACKKNIFE_GROUPS = 20

Cells = Mapping[tuple[str, ...], tuple[Any, Any]]  # model, pair or set of models -> cell of the table


class _Scorer:
    """Prepares models and scores them; failures and undefined scores go into the comparisons, with names."""

    def __init__(
        self, permutations: int, ci: float | None, seed: int, device: torch.device | str | None, quiet: bool
    ) -> None:
        if ci is not None and not 0 < ci < 1:
            raise ValueError(f"the level of confidence intervals lies between 0 and 1, got {ci}")
        self.permutations = permutations
        self.ci = ci
        self.seed = seed
        self.device = device
        self.quiet = quiet

    def fill(
        self,
        found: list[Comparison],
        prepare: Preparation | None,
        inputs: Mapping[str, Any],
        cells: Cells,
        where: str = "",
        progress: str = "",
    ) -> None:
        """Score what `cells` names, with intervals if asked; `found` are measures that `prepare` serves."""
        sizes = self._score_all(found, prepare, inputs, cells, where, progress)
        left = [comparison for comparison in found if self.ci and _method(comparison.measure) == "jackknife"]
        if left and not _failed(left):
            self._jackknife(left, prepare, inputs, cells, min(sizes), where + progress)

    def _score_all(
        self,
        found: list[Comparison],
        prepare: Preparation | None,
        inputs: Mapping[str, Any],
        cells: Cells,
        where: str,
        progress: str = "",
    ) -> set[int]:
        """Score all cells; returns the numbers of images met."""
        measure = found[0].measure
        sizes: set[int] = set()
        if isinstance(measure, Statistic):
            for (name,), cell in cells.items():
                try:
                    rep = to_device(inputs[name], self.device)
                except _FAILURES as error:
                    _fail(found, name + where, error)
                    return sizes
                sizes.add(len(rep))
                for comparison in found:
                    self._try(comparison, name + where, cell, comparison.measure, rep)
            return sizes
        prepared, devices = {}, {}
        for name in dict.fromkeys(itertools.chain.from_iterable(cells)):
            try:
                value = to_device(inputs[name], self.device)
                devices[name] = value.logits.device if isinstance(value, Outputs) else value.device
                prepared[name] = prepare(value)
            except _FAILURES as error:
                _fail(found, name + where, error)
                return sizes
        sizes = {len(model) for model in prepared.values()}
        title = ", ".join(comparison.name for comparison in found) + where + progress
        bar = tqdm(cells.items(), desc=title, unit="pair", disable=self.quiet or isinstance(measure, SetStatistic))
        for models, cell in bar:
            if isinstance(measure, SetStatistic):
                self._set_statistic(found[0], [prepared[name] for name in models], cell, devices[models[0]])
                continue
            if _failed(found):
                continue
            a, b = (prepared[name] for name in models)
            subject = " and ".join(models) + where
            if models[0] != models[1] or any(comparison.measure.self_score is None for comparison in found):
                self._pair(found, a, b, subject, cell, devices[models[1]])
            for order in () if _failed(found) else self.orders(len(b), devices[models[1]]):
                self._permuted_pair(found, a, b, order, subject, cell)
        return sizes

    def orders(self, n: int, device: torch.device) -> Iterator[torch.Tensor]:
        """The permutations of n images, on a device: the same for every pair of models."""
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.randperm(n, generator=generator).to(device) for _ in range(self.permutations))

    def _pair(
        self, found: list[Comparison], a: Any, b: Any, subject: str, cell: tuple[Any, Any], device: torch.device
    ) -> None:
        pair = None
        for comparison in found:
            measure = comparison.measure
            try:
                pair = pair or Pair(a, b)
            except ValueError as error:
                _fail(found, subject, error)
                return
            self._try(comparison, subject, cell, measure.score, pair)
            if comparison.failure is not None:
                continue
            if measure.per_trial is not None:
                trials = pair.once(measure.per_trial).cpu().numpy()
                comparison.spread.at[cell] = _spread(trials)
            if self.ci and _method(measure) == "trials":
                self._write_t_interval(comparison, cell, _spread(trials) / math.sqrt(len(trials)), len(trials) - 1)
            elif self.ci and _method(measure) == "bootstrap":
                with full_precision():
                    self._bootstrap(comparison, cell, len(a), partial(_resample_pair, measure, pair), device)

    def _permuted_pair(
        self, found: list[Comparison], a: Any, b: Any, order: torch.Tensor, subject: str, cell: tuple[Any, Any]
    ) -> None:
        try:
            with full_precision():
                pair = Pair(a, b.permute(order))
        except _FAILURES as error:
            _fail(found, subject, error)
            return
        for comparison in found:
            if comparison.failure is None:
                try:
                    with full_precision():
                        score = _listen(comparison, f"{subject}, permuted", comparison.measure.score, pair)
                    comparison.permuted.at[cell].append(score)
                except _FAILURES as error:
                    _fail([comparison], subject, error)

    def _set_statistic(
        self, comparison: Comparison, models: list[Any], cell: tuple[Any, Any], device: torch.device
    ) -> None:
        compute = comparison.measure.compute
        self._try(comparison, "the set of models", cell, compute, models)
        if self.ci and comparison.failure is None:
            self._bootstrap(comparison, cell, len(models[0]), partial(_resample_set, compute, models), device)

    def _try(
        self, comparison: Comparison, subject: str, cell: tuple[Any, Any], compute: Callable[[Any], float], on: Any
    ) -> None:
        """Write `compute(on)` to a cell, or note why not."""
        if comparison.failure is None:
            try:
                with full_precision():
                    comparison.scores.at[cell] = _listen(comparison, subject, compute, on)
            except _FAILURES as error:
                _fail([comparison], subject, error)

    def _bootstrap(
        self,
        comparison: Comparison,
        cell: tuple[Any, Any],
        n: int,
        resample: Callable[[Iterator[torch.Tensor]], Iterator[float]],
        device: torch.device,
    ) -> None:
        """Percentiles of the scores of images drawn with replacement; draws without a defined score are left out."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = (torch.randint(n, (n,), generator=generator).to(device) for _ in range(BOOTSTRAP_DRAWS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedScore)
            scores = np.array(list(resample(draws)))
        scores = scores[~np.isnan(scores)]
        tails = ((1 - self.ci) / 2, (1 + self.ci) / 2)
        low, high = np.quantile(scores, tails) if len(scores) else (math.nan, math.nan)
        comparison.low.at[cell], comparison.high.at[cell] = low, high

    def _jackknife(
        self,
        found: list[Comparison],
        prepare: Preparation | None,
        inputs: Mapping[str, Any],
        cells: Cells,
        n: int,
        where: str,
    ) -> None:
        """Intervals from leaving out each of 20 random groups of images, as even in size as N allows."""
        groups = min(JACKKNIFE_GROUPS, n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        scorer = _Scorer(0, None, self.seed, self.device, quiet=True)
        rounds = []
        title = ", ".join(comparison.name for comparison in found) + where + ": confidence"
        for group in tqdm(order.tensor_split(groups), desc=title, unit="group", disable=self.quiet):
            keep = torch.ones(n, dtype=torch.bool)
            keep[group] = False
            again = [_start(comparison.measure, *comparison.scores.axes, scorer) for comparison in found]
            scorer._score_all(again, prepare, _Cut(inputs, keep), cells, where)
            rounds.append(again)
        for position, comparison in enumerate(found):
            failure = next((again[position].failure for again in rounds if again[position].failure), None)
            if failure is not None:
                comparison.notes.append(f"no confidence intervals: without a group of images, {failure}")
                continue
            for cell in cells.values():
                scores = np.array([again[position].scores.at[cell] for again in rounds])
                error = math.sqrt((len(scores) - 1) / len(scores) * np.sum((scores - scores.mean()) ** 2))
                self._write_t_interval(comparison, cell, error, len(scores) - 1)

    def _write_t_interval(self, comparison: Comparison, cell: tuple[Any, Any], error: float, freedom: int) -> None:
        from scipy.stats import t

        half = error * float(t.ppf((1 + self.ci) / 2, freedom)) if freedom > 0 else math.nan
        score = comparison.scores.at[cell]
        comparison.low.at[cell], comparison.high.at[cell] = score - half, score + half


# What a measure says about its input, LAPACK about a matrix, and a device or NumPy about its memory.
_FAILURES = (ValueError, torch.linalg.LinAlgError, torch.OutOfMemoryError, MemoryError)


class _Cut(Mapping):
    """The rows of every model's input that a mask keeps."""

    def __init__(self, inputs: Mapping[str, Any], keep: torch.Tensor) -> None:
        self.inputs = inputs
        self.keep = keep

    def __getitem__(self, name: str) -> Any:
        value = self.inputs[name]
        if isinstance(value, Outputs):
            labels = None if value.labels is None else self._rows(value.labels)
            return Outputs(self._rows(value.logits), labels)
        return self._rows(value)

    def _rows(self, values: Any) -> torch.Tensor:
        values = as_tensor(values)
        return values[self.keep.to(values.device)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


def _method(measure: AnyMeasure) -> str:
    """How the confidence interval of a measure is found."""
    if isinstance(measure, SetStatistic):
        return "bootstrap"
    if isinstance(measure, Measure) and measure.per_trial is not None:
        return "trials"
    return "bootstrap" if isinstance(measure, Measure) and measure.bootstrap else "jackknife"


def _resample_pair(measure: Measure, pair: Pair, draws: Iterator[torch.Tensor]) -> Iterator[float]:
    if measure.per_image is not None:
        values = measure.per_image(pair)
        return (values[drawn].mean().item() for drawn in draws)
    return (measure.score(Pair(pair.a.permute(drawn), pair.b.permute(drawn))) for drawn in draws)


def _resample_set(
    compute: Callable[[list[Any]], float], models: list[Any], draws: Iterator[torch.Tensor]
) -> Iterator[float]:
    return (compute([model.permute(drawn) for model in models]) for drawn in draws)


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def to_device(value: Any, device: torch.device | str | None) -> Any:
    """A representation, or the logits and labels of `Outputs`, on `device` (None: where it is)."""
    if isinstance(value, Outputs):
        labels = None if value.labels is None else to_device(value.labels, device)
        return Outputs(to_device(value.logits, device), labels)
    return as_tensor(value) if device is None else as_tensor(value).to(device)


@dataclass
class _Group:
    """Measures that one preparation serves, or a single statistic."""

    prepare: Preparation | None
    measures: list[AnyMeasure]


def _groups(measures: Iterable[AnyMeasure]) -> list[_Group]:
    """Measures that share a preparation, in the order in which the first of each group was asked for."""
    groups: list[_Group] = []
    for measure in measures:
        prepare = None if isinstance(measure, Statistic) else measure.prepare
        for group in groups:
            if isinstance(measure, Measure) and isinstance(group.measures[0], Measure):
                if prepare.covers(group.prepare):
                    group.prepare = prepare
                if group.prepare.covers(prepare):
                    group.measures.append(measure)
                    break
        else:
            groups.append(_Group(prepare, [measure]))
    names = [measure.name for group in groups for measure in group.measures]
    if len(set(names)) < len(names):
        raise ValueError(f"each measure can be asked for once, got {', '.join(names)}")
    return groups


def _start(measure: AnyMeasure, rows: Iterable, columns: Iterable, scorer: _Scorer) -> Comparison:
    """Empty tables for what the scorer will find."""
    rows, columns = list(rows), list(columns)
    comparison = Comparison(measure, pd.DataFrame(math.nan, index=rows, columns=columns))
    if scorer.ci:
        comparison.low, comparison.high = comparison.scores.copy(), comparison.scores.copy()
    if isinstance(measure, Measure):
        if scorer.permutations:
            comparison.permuted = pd.DataFrame([[[] for _ in columns] for _ in rows], index=rows, columns=columns)
        if measure.per_trial is not None:
            comparison.spread = pd.DataFrame(0.0, index=rows, columns=columns)
    return comparison


def _mirror(comparison: Comparison, names: list[str]) -> None:
    """Copy the upper triangle of a symmetric measure to the lower one."""
    if comparison.measure.symmetric:
        tables = [comparison.scores, comparison.spread, comparison.permuted, comparison.low, comparison.high]
        for table in tables:
            if table is not None:
                for a, b in itertools.combinations(names, 2):
                    table.at[b, a] = table.at[a, b]


def _set_diagonal(comparison: Comparison, names: list[str]) -> None:
    """What a model scores against itself by definition, where that is one number."""
    if isinstance(comparison.measure, Measure) and comparison.measure.self_score is not None:
        for table in (comparison.scores, comparison.low, comparison.high):
            if table is not None:
                for name in names:
                    table.at[name, name] = comparison.measure.self_score


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
    reason = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        first = reason.partition(". ")[0] or "out of memory"  # CUDA's message goes on about its allocator
        reason = f"{first}: compare fewer images (--num-inputs) or on the CPU (--device cpu)"
    for comparison in found:
        if comparison.failure is None:
            comparison.failure = f"{subject}: {reason}"


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
            Without it k-NN, RTD and Procrustes differ between the groups for their size alone.
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
        find = FindNeighbors(max(possible), settings.function, published=settings.published)  # ordered: cut at each k
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
