"""Representations or logits by model name, any program's -> a tidy table of scores: `univ.compare`."""

import difflib
import inspect
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from univ.compare.drivers import pairwise
from univ.compare.scoring import Comparison
from univ.errors import InputError
from univ.measures.base import Measure, Rep, UndefinedScore, as_tensor
from univ.measures.cards import CARDS
from univ.measures.functional import Outputs

COLUMNS = ["model1", "model2", "measure", "score", "low", "high", "p"]
NEIGHBORS = 10  # the study's 500 ask for more images than a first look has


def compare(
    reps: Mapping[str, Rep],
    measures: str | Measure | Sequence[str | Measure],
    *,
    labels: Rep | None = None,
    ci: float | None = None,
    permutations: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Score every pair of models on the same samples.

    Args:
        reps: model name -> representation (N, ...), row i of all of them from the same sample, tensor or array; for
            measures of predictions (dis, jsd ...) logits (N, C).
        measures: keys of `univ.measures.CARDS` (cka, proc, jacc ...), or measures already made; of representations or
            of predictions, not both in one call.
        labels: (N,) classes, for the measures of predictions that need them.
        ci: level of confidence intervals over samples, such as 0.95, see `pairwise`; None for none.
        permutations: samples of the second model permuted this often for a p-value; 199 give p-values down to 0.005.
        seed: of permutations and intervals.
        device: where to compute; default: where each representation is.
        quiet: no progress bars.
        settings: of the measures by name, such as k (neighbours, by default 10) or center; each gets those it knows.

    Returns:
        One row per measure and pair: model1, model2, measure, score, low and high (nan without `ci`), p (nan without
        `permutations`). Each pair once; where a measure depends on the direction, twice: model1 is then the column of
        `pairwise`'s table. What larger scores mean is on the measure's card.

    Raises:
        InputError: fewer than two models, other numbers of rows, an unknown measure or setting, values that a measure
            cannot compare (names model and measure).
    """
    built = _build([measures] if isinstance(measures, str | Measure) else list(measures), {"seed": seed, **settings})
    run = {"permutations": permutations, "ci": ci, "seed": seed, "device": device, "quiet": quiet}
    found = pairwise(_inputs(reps, labels, built), built, **run).values()
    if failures := [f"{comparison.name}: {comparison.failure}" for comparison in found if comparison.failure]:
        raise InputError("; ".join(failures))
    for comparison in found:
        for note in comparison.notes:
            warnings.warn(f"{comparison.name}: {note}", UndefinedScore, stacklevel=2)
    return pd.DataFrame(itertools.chain.from_iterable(map(_rows, found)), columns=COLUMNS)


def _rows(comparison: Comparison) -> Iterator[tuple[Any, ...]]:
    tables = [comparison.scores, comparison.low, comparison.high, comparison.p_values]
    for a, b in itertools.combinations(comparison.scores, 2):
        for first, second in [(a, b)] if comparison.measure.symmetric else [(a, b), (b, a)]:
            cells = [math.nan if table is None else float(table.at[second, first]) for table in tables]
            yield first, second, comparison.name, *cells


def _of(measure: Measure) -> str:
    """Whether a measure reads `reps` or `outputs`."""
    return CARDS[measure.name].of if measure.name in CARDS else "reps"


def _build(measures: Sequence[str | Measure], settings: Mapping[str, Any]) -> list[Measure]:
    """The measures, each with those of the settings that it knows."""
    pairs = [key for key, card in CARDS.items() if card.pairs]
    used, built = {"seed"}, []
    for measure in measures:
        if isinstance(measure, str):
            if measure not in pairs:
                why = "is a number of one model or of the whole set" if measure in CARDS else "is no measure"
                near = difflib.get_close_matches(measure, pairs, 3) or pairs
                raise InputError(f"{measure!r} {why}; measures of pairs: {', '.join(near)}")
            known = inspect.signature(CARDS[measure].make).parameters
            mine = {name: value for name, value in settings.items() if name in known}
            if count := known.keys() & {"k", "neighbors"}:
                mine |= dict.fromkeys(count, settings.get("k", NEIGHBORS))
                used.add("k")
            used |= mine.keys()
            measure = CARDS[measure].make(**mine)
        built.append(measure)
    if unused := settings.keys() - used:
        raise InputError(f"none of these measures has the setting {', '.join(sorted(unused))}")
    if not built:
        raise InputError("name at least one measure, such as 'cka'")
    if len(set(map(_of, built))) > 1:
        of_reps, of_outputs = (", ".join(one.name for one in built if _of(one) == kind) for kind in ("reps", "outputs"))
        raise InputError(f"{of_reps} read representations, {of_outputs} logits: call compare once for each")
    return built


def _inputs(reps: Mapping[str, Rep], labels: Rep | None, measures: Sequence[Measure]) -> dict[str, Any]:
    """What the measures read, by model; all of the same number of samples."""
    if not isinstance(reps, Mapping) or len(reps) < 2:
        raise InputError("compare needs representations of at least two models, as a dict by name")
    inputs: dict[str, Any] = {}
    for name, rep in reps.items():
        try:
            inputs[name] = as_tensor(rep)
        except TypeError as error:
            raise InputError(f"{name}: {error}") from error
        if inputs[name].ndim < 2:
            raise InputError(f"{name}: expected one row per sample, (N, ...), got shape {tuple(inputs[name].shape)}")
    lengths = {name: len(rep) for name, rep in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the models saw different numbers of samples: {lengths}")
    if _of(measures[0]) == "reps":
        return inputs
    if labels is not None:
        labels = as_tensor(labels)
    return {name: Outputs(logits, labels) for name, logits in inputs.items()}
