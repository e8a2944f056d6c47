"""Scoring: a group of measures and the models' inputs -> the cells of a table for each measure.

Each model is prepared once, pairs are the outer loop and measures the inner one, so that a `Pair` computes what several
measures need once.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from univ.compare import uncertainty
from univ.measures.base import Measure, Pair, UndefinedScore, as_tensor, full_precision
from univ.measures.functional import Outputs, SetStatistic
from univ.measures.statistics import Statistic

AnyMeasure = Measure | Statistic | SetStatistic
Cells = Mapping[tuple[str, ...], tuple[Any, Any]]  # model, pair or set of models -> cell of the table

# What a measure says about its input, LAPACK about a matrix, and a device or NumPy about its memory.
FAILURES = (ValueError, torch.linalg.LinAlgError, torch.OutOfMemoryError, MemoryError)

SHARES = ("dis", "amb")  # shares of images, whose intervals are those of a share


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
        """`uncertainty.p_value` of each score; None without permutations, nan on the diagonal."""
        return self._with_null(uncertainty.p_value)

    def calibrated(self, level: float = 0.95) -> pd.DataFrame | None:
        """`uncertainty.calibrated` of each score; None without permutations, nan on the diagonal.

        Raises:
            ValueError: the measure has no fixed score for identical models.
        """
        if self.permuted is not None and self.measure.self_score is None:
            raise ValueError(f"{self.name} has no fixed score for identical models to calibrate with")
        best = self._sign * (self.measure.self_score or 0.0)
        return self._with_null(partial(uncertainty.calibrated, best=best, level=level))

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

    def complete(self, *, mirror: bool) -> None:
        """Write what needs no computing: a model's score with itself and, with `mirror`, a symmetric measure's half."""
        if not isinstance(self.measure, Measure):
            return
        names = list(self.scores)
        tables = [self.scores, self.low, self.high, self.spread, self.permuted]
        for table, (a, b) in itertools.product(tables, itertools.combinations(names, 2)):
            if table is not None and mirror and self.measure.symmetric:
                table.at[b, a] = table.at[a, b]
        for table, name in itertools.product(tables[:3], names):
            if table is not None and self.measure.self_score is not None:
                table.at[name, name] = self.measure.self_score

    def fail(self, subject: str, error: Exception) -> None:
        reason = str(error)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            first = reason.partition(". ")[0] or "out of memory"  # CUDA's message goes on about its allocator
            reason = f"{first}: compare fewer images (--num-inputs) or on the CPU (--device cpu)"
        self.failure = self.failure or f"{subject}: {reason}"


def to_device(value: Any, device: torch.device | str | None, keep: Tensor | None = None) -> Any:
    """A representation, or the logits and labels of `Outputs`, on `device` (None: where it is), cut to a mask."""
    if isinstance(value, Outputs):
        labels = None if value.labels is None else to_device(value.labels, device, keep)
        return Outputs(to_device(value.logits, device, keep), labels)
    tensor = as_tensor(value)
    tensor = tensor if keep is None else tensor[keep.to(tensor.device)]
    return tensor if device is None else tensor.to(device)


@contextlib.contextmanager
def reported(comparisons: list[Comparison], subject: str) -> Iterator[None]:
    """What fails in the block becomes the failure of the comparisons, what is undefined a note; warnings pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndefinedScore)
        try:
            yield
        except FAILURES as error:
            for comparison in comparisons:
                comparison.fail(subject, error)
    for warning in caught:
        if issubclass(warning.category, UndefinedScore):
            for comparison in comparisons:
                comparison.notes.append(f"{subject}: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@dataclass(frozen=True)
class Scorer:
    """Prepares models and scores them; failures and undefined scores go into the comparisons, with names."""

    permutations: int
    ci: float | None
    seed: int
    device: torch.device | str | None
    quiet: bool

    def __post_init__(self) -> None:
        if self.ci is not None and not 0 < self.ci < 1:
            raise ValueError(f"the level of confidence intervals lies between 0 and 1, got {self.ci}")

    def start(self, measure: AnyMeasure, rows: Iterable, columns: Iterable) -> Comparison:
        """Empty tables for what will be found."""
        comparison = Comparison(measure, pd.DataFrame(math.nan, index=list(rows), columns=list(columns)))
        if self.ci:
            comparison.low, comparison.high = comparison.scores.copy(), comparison.scores.copy()
        if isinstance(measure, Measure) and self.permutations:
            comparison.permuted = comparison.scores.map(lambda _: [])
        if isinstance(measure, Measure) and measure.per_trial is not None:
            comparison.spread = comparison.scores.fillna(0.0)
        return comparison

    def fill(
        self,
        comparisons: list[Comparison],
        prepare: Callable[[Any], Any],
        inputs: Mapping[str, Any],
        cells: Cells,
        where: str = "",
        progress: str = "",
    ) -> None:
        """Score what `cells` names, with intervals if asked; `comparisons` are of measures that `prepare` serves."""
        n = self._score_all(comparisons, prepare, inputs, cells, where, progress)
        left = [each for each in comparisons if interval_method(each.measure) == "jackknife" and each.failure is None]
        if not self.ci or not left:
            return
        plain, rounds = replace(self, permutations=0, ci=None, quiet=True), []
        title = f"{_names(left)}{where}{progress}: confidence"
        for keep in tqdm(uncertainty.jackknife_masks(n, self.seed), title, unit="group", disable=self.quiet):
            rounds.append([plain.start(each.measure, *each.scores.axes) for each in left])
            plain._score_all(rounds[-1], prepare, inputs, cells, where, keep=keep)
        for comparison, parts in zip(left, zip(*rounds)):
            if failure := next((part.failure for part in parts if part.failure), None):
                comparison.notes.append(f"no confidence intervals: without a group of images, {failure}")
                continue
            for cell in cells.values():
                error = uncertainty.jackknife_error(np.array([part.scores.at[cell] for part in parts]))
                interval = uncertainty.t_interval(comparison.scores.at[cell], error, len(parts) - 1, self.ci)
                comparison.low.at[cell], comparison.high.at[cell] = interval

    def _score_all(
        self,
        comparisons: list[Comparison],
        prepare: Callable[[Any], Any],
        inputs: Mapping[str, Any],
        cells: Cells,
        where: str,
        progress: str = "",
        keep: Tensor | None = None,
    ) -> int:
        """Score all cells, of the images that `keep` (N,) marks if there is one; returns the number of images."""
        prepared, device = {}, None
        for name in dict.fromkeys(itertools.chain.from_iterable(cells)):
            with reported(comparisons, name + where):
                value = to_device(inputs[name], self.device, keep)
                prepared[name] = prepare(value)
                device = value.logits.device if isinstance(value, Outputs) else value.device
            if _all_failed(comparisons):
                return 0
        of_set = isinstance(comparisons[0].measure, SetStatistic)
        title = _names(comparisons) + where + progress
        for names, cell in tqdm(cells.items(), title, unit="pair", disable=self.quiet or of_set):
            if _all_failed(comparisons):
                break
            subject = "the set of models" if of_set else " and ".join(names) + where
            models = [prepared[name] for name in names]
            itself = len(names) == 2 and names[0] == names[1]
            if not itself or any(each.measure.self_score is None for each in comparisons):
                self._score(comparisons, models, cell, subject, device)
            if comparisons[0].permuted is not None:
                self._permute(comparisons, models, cell, subject, device)
        return min(map(len, prepared.values()))

    def _score(
        self, comparisons: list[Comparison], models: list[Any], cell: tuple, subject: str, device: torch.device
    ) -> None:
        joint = None
        for comparison in comparisons:
            if comparison.failure is not None:
                continue
            measure, method = comparison.measure, interval_method(comparison.measure)
            with reported([comparison], subject), full_precision():
                joint = _join(measure, models) if joint is None else joint
                score = comparison.scores.at[cell] = _compute(measure, joint)
                if method == "trials":
                    trials = joint.once(measure.per_trial).cpu().numpy()
                    spread = float(trials.std(ddof=1)) if len(trials) > 1 else 0.0
                    comparison.spread.at[cell] = spread
                    interval = self._of_trials(comparison, score, trials, models[0]) if self.ci else None
                elif method == "share" and self.ci:
                    interval = uncertainty.wilson(score, len(models[0]), self.ci)
                elif method == "none" and self.ci:
                    interval = None
                    _note_once(comparison, f"no confidence intervals: {comparison.name} is a maximum over pairs")
                elif method == "bootstrap" and self.ci:
                    draws = (draw.to(device) for draw in uncertainty.bootstrap_draws(len(models[0]), self.seed))
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UndefinedScore)
                        scores = np.array(list(_resampled(measure, models, joint, draws)))
                    interval = uncertainty.percentiles(scores, self.ci)
                else:
                    interval = None
                if interval is not None:
                    comparison.low.at[cell], comparison.high.at[cell] = interval

    def _of_trials(
        self, comparison: Comparison, score: float, trials: np.ndarray, drawn: Any
    ) -> tuple[float, float] | None:
        """The interval of a mean over trials; none, and why, where all images are one trial."""
        if len(trials) < 2:
            _note_once(comparison, f"no confidence intervals: {len(drawn)} images are one trial")
            return None
        error = uncertainty.trials_error(trials, drawn.how.batch, len(drawn))
        return uncertainty.t_interval(score, error, len(trials) - 1, self.ci)

    def _permute(
        self, comparisons: list[Comparison], models: list[Any], cell: tuple, subject: str, device: torch.device
    ) -> None:
        a, b = models
        for order in uncertainty.permutations(len(b), self.permutations, self.seed):
            pair = None
            for comparison in comparisons:
                if comparison.failure is None:
                    with reported([comparison], f"{subject}, permuted"), full_precision():
                        pair = pair or Pair(a, b.permute(order.to(device)))
                        comparison.permuted.at[cell].append(comparison.measure.score(pair))


def _note_once(comparison: Comparison, note: str) -> None:
    if note not in comparison.notes:
        comparison.notes.append(note)


def _names(comparisons: list[Comparison]) -> str:
    return ", ".join(comparison.name for comparison in comparisons)


def _all_failed(comparisons: list[Comparison]) -> bool:
    return all(comparison.failure is not None for comparison in comparisons)


def interval_method(measure: AnyMeasure) -> str:
    """How the confidence interval of a measure is found: trials, share, bootstrap, jackknife, or none."""
    if isinstance(measure, Measure) and measure.per_trial is not None:
        return "trials"
    if measure.name in SHARES:
        return "share"
    if measure.name == "disc":  # the bootstrap of a maximum covers 73 %
        return "none"
    return "bootstrap" if isinstance(measure, SetStatistic) or getattr(measure, "bootstrap", False) else "jackknife"


def _join(measure: AnyMeasure, models: list[Any]) -> Any:
    """What a score is computed from: a `Pair`, whose parts several measures share, one model, or a set of them."""
    if isinstance(measure, Measure):
        return Pair(*models)
    return models if isinstance(measure, SetStatistic) else models[0]


def _compute(measure: AnyMeasure, joint: Any) -> float:
    return measure.score(joint) if isinstance(measure, Measure) else measure.compute(joint)


def _resampled(measure: AnyMeasure, models: list[Any], joint: Any, draws: Iterable[Tensor]) -> Iterator[float]:
    """The scores of images drawn with replacement."""
    if isinstance(measure, Measure) and measure.per_image is not None:
        values = measure.per_image(joint)
        return (values[drawn].mean().item() for drawn in draws)
    return (_compute(measure, _join(measure, [model.permute(drawn) for model in models])) for drawn in draws)
