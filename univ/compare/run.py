"""A setting and a list of measures -> result CSVs: skips what is there, saves each measure as it is done.

The part that rep.py and func.py share after they have parsed their flags.
"""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from torch import Tensor

from univ import cli, compare, results, runs
from univ.compare import AnyMeasure, Comparison
from univ.compare.inputs import Setting
from univ.measures import Measure, build
from univ.reps.extract import Extraction
from univ.results import ResultFile, made

PERMUTATIONS = 199  # p-values down to 0.005; a calibrated score's threshold is then the 190th of 200
NOT_IN_SETTINGS = ("workers", "stream")  # how a score is computed, not which score it is


@dataclass(frozen=True)
class Task:
    """One measure to compute: the measure, the file it goes to and what its numbers depend on.

    `measure` is None where a driver of its own computes it.
    """

    measure: AnyMeasure | None
    file: ResultFile
    settings: dict[str, Any]


def add_permutations(group: argparse._ArgumentGroup) -> None:
    """The flag -p of rep.py and func.py."""
    text = (
        f"random permutations for the baseline, {PERMUTATIONS} if -p stands alone, none without it; p-values and "
        f"calibrated scores want {PERMUTATIONS} or more (below 19 every calibrated score is 0)"
    )
    group.add_argument(
        "-p", "--perturbs", nargs="?", type=cli.non_negative_int, const=PERMUTATIONS, default=0, help=text
    )


def plan(
    setting: Setting,
    registry: Mapping[str, Callable[..., AnyMeasure]],
    keys: Sequence[str],
    *,
    permutations: int = 0,
    function: str = "cos_sim",
    **options: Any,
) -> list[Task]:
    """The measures `keys` with the options each knows, and where their results go.

    Args:
        registry: command-line key -> factory.
        permutations: for the baseline; statistics of one model or of a set have none and are left out, saying so.
        function, options: settings of the factories (`k`, `center`, `normalize`, ...); each gets those it knows.
    """
    options = {**options, "function": function}
    described, tasks = setting.describe(), []
    for key in keys:
        known = inspect.signature(registry[key]).parameters
        mine = {name: value for name, value in options.items() if name in known}
        measure = build(registry, [key], **mine)[0]
        if permutations and not isinstance(measure, Measure):
            logger.info("{} has no permutation baseline: skipped with -p", key)
            continue
        file = ResultFile(
            key,
            dataset=setting.dataset,
            models=setting.train_set,
            eps=setting.eps,
            exp=setting.exp,
            inverted=setting.inverted,
            center=bool(options.get("center", False)),
            normalize=bool(options.get("normalize", False)),
            function=function,
            adversarial=setting.adversarial,
            sample=setting.sample,
            baseline=permutations > 0,
        )
        settings = {name: value for name, value in mine.items() if name not in NOT_IN_SETTINGS}
        if "k" in settings:
            settings["knn"] = settings.pop("k")  # the flag's name, which the figures look for
        if permutations:
            settings |= {"permutations": permutations, "permutation_seed": setting.seed, "calibration": "with score"}
        tasks.append(Task(measure, file, {"measure": key, **settings, **described}))
    return tasks


def run(
    setting: Setting,
    tasks: Sequence[Task],
    as_input: Callable[[Extraction, Tensor], Any],
    *,
    root: Path,
    arguments: Mapping[str, Any],
    permutations: int = 0,
    ci: float | None = None,
    overwrite: bool = False,
    extract: Callable[[str | None], Mapping[str, Extraction]] | None = None,
    describe: Callable[[str | None, Mapping[str, Extraction], Tensor], Any] | None = None,
) -> int:
    """Compute and save what is not there yet; return how many measures could not be computed.

    Args:
        setting: the models and images.
        tasks: what `plan` returned.
        as_input: (extraction, labels) -> what the measures want.
        root: the results folder.
        arguments: of the command line, for the record beside each result.
        permutations: score each pair also with the second model's images permuted, this often.
        ci: level of confidence intervals over images, written beside the scores; None for none.
        overwrite: compute results anew that are there already.
        extract: source of images -> extractions; default: the setting's own.
        describe: (source, extractions, labels) -> facts on the models for the record of every result.
    """
    todo = []
    for task in tasks:
        extras = companions_of(task.measure, permutations, ci)
        if not _done(root, task, overwrite, companions=extras, ci=ci if "ci" in extras else None):
            todo.append(task)
    if not todo:
        return 0

    by_name = {task.measure.name: task for task in todo}
    facts: dict[str | None, Any] = {}

    def inputs_of(source: str | None) -> dict[str, Any]:
        found = (extract or setting.extractions)(source)
        labels = setting.labels(source)
        if describe is not None:
            facts[source] = describe(source, found, labels)
        return {name: as_input(extraction, labels) for name, extraction in found.items()}

    def save(comparison: Comparison) -> None:
        for note in comparison.notes:
            logger.warning("{}: nan, {}", comparison.name, note)
        if comparison.failure is not None:
            logger.error("{} was not computed: {}", comparison.name, comparison.failure)
            return
        task = by_name[comparison.name]
        record: dict[str, Any] = {"arguments": dict(arguments), **runs.provenance()}
        if describe is not None:
            record |= _merge(facts)
        if comparison.spread is not None:
            record["spread"] = comparison.spread.to_dict()
        scores = comparison.baseline if permutations else comparison.scores
        results.write(root, task.file, scores, task.settings, record, singles=comparison.permuted)
        for name in companions_of(comparison.measure, permutations, ci):
            table = companion_table(comparison, name)
            about = {**task.settings, "level": ci} if name == "ci" else task.settings
            results.write_companion(root, task.file, name, table, about, record)

    measures = [task.measure for task in todo]
    options = {
        "permutations": permutations,
        "ci": ci,
        "seed": setting.seed,
        "device": setting.device,
        "quiet": setting.quiet,
    }
    if setting.rowwise:
        done = compare.rowwise(list(setting.models), inputs_of, measures, on_result=save, **options)
    else:
        done = compare.pairwise(inputs_of(None), measures, on_result=save, **options)
    failed = [name for name, comparison in done.items() if comparison.failure is not None]
    if failed:
        logger.error("{} of {} measures could not be computed: {}", len(failed), len(done), ", ".join(failed))
    return len(failed)


def run_stir(setting: Setting, *, root: Path, arguments: Mapping[str, Any], overwrite: bool = False) -> int:
    """Compute and save STIR on inverted images; return 1 if it could not be computed."""
    file = ResultFile(
        "stir",
        dataset=setting.dataset,
        models=setting.train_set,
        eps=setting.eps,
        exp=setting.exp,
        inverted=True,
        adversarial=setting.adversarial,
    )
    settings = {"measure": "stir", **setting.describe()}
    if _done(root, Task(None, file, settings), overwrite):
        return 0

    def reps(found: Mapping[str, Extraction]) -> dict[str, Tensor]:
        return {name: extraction.reps for name, extraction in found.items()}

    comparison = compare.stir(
        reps(setting.extract_targets()),
        lambda source: reps(setting.extractions(source)),
        device=setting.device,
        quiet=setting.quiet,
    )
    if comparison.failure is not None:
        logger.error("stir was not computed: {}", comparison.failure)
        return 1
    results.write(root, file, comparison.scores, settings, {"arguments": dict(arguments), **runs.provenance()})
    return 0


def _done(root: Path, task: Task, overwrite: bool, *, companions: Sequence[str] = (), ci: float | None = None) -> bool:
    """Whether a task's files are there, made with its settings; says why they are kept or made anew."""
    plain = [name for name in companions if name != "ci"]
    status = results.check(root, task.file, task.settings, companions=plain)
    if status and ci is not None:
        status = made.check(task.file.companion_path(root, "ci"), {**task.settings, "level": ci})
    if status and not overwrite:
        logger.info(status.reason)
        return True
    if status.path.exists():
        logger.info("{}", "computing anew: --overwrite" if status else status.reason)
    return False


def companions_of(measure: AnyMeasure, permutations: int, ci: float | None) -> list[str]:
    """The long tables that go beside a measure's scores: `ci`, `pvalue`, `calibrated`."""
    if not isinstance(measure, Measure):
        return []
    names = ["ci"] if ci is not None else []
    if permutations:
        names += ["pvalue"] + (["calibrated"] if measure.self_score is not None else [])
    return names


def companion_table(comparison: Comparison, name: str) -> pd.DataFrame:
    """One row per comparison of two models: model1 (on inverted images their source), model2, score and the companion.

    Columns low, high for `ci`; p_value; calibrated.
    """
    columns = {"score": comparison.scores}
    if name == "ci":
        columns |= {"low": comparison.low, "high": comparison.high}
    elif name == "pvalue":
        columns["p_value"] = comparison.p_values
    else:
        columns["calibrated"] = comparison.calibrated()
    models = list(comparison.scores.columns)
    pairs = [(source, other) for source in models for other in models if source != other]
    rows = [(a, b, *(table.loc[b, a] for table in columns.values())) for a, b in pairs]
    return pd.DataFrame(rows, columns=["model1", "model2", *columns])


def _merge(facts: Mapping[str | None, Mapping[str, Any]]) -> dict[str, Any]:
    """Facts as they are for one set of images; for several, those that differ by source become a dict by source."""
    if set(facts) == {None}:
        return dict(facts[None])
    merged: dict[str, Any] = {}
    for source, found in facts.items():
        for name, value in found.items():
            if isinstance(value, Mapping):
                merged.setdefault(name, {})[source] = value
            else:
                merged[name] = value
    return merged
