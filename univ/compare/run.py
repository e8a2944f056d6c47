"""The flags and the measures' cards -> result CSVs: what is there is skipped, each measure saved as it is done.

The part that rep.py and func.py share after they have parsed their flags.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from torch import Tensor

from univ import cli, compare, results, runs
from univ.compare import AnyMeasure, Comparison
from univ.compare.inputs import ImageSet, Models, open_targets
from univ.compare.scoring import interval_method
from univ.data import dataset_name
from univ.measures import CARDS, Measure
from univ.reps.extract import Extraction
from univ.results import ResultFile

PERMUTATIONS = 199  # p-values down to 0.005; a calibrated score's threshold is then the 190th of 200
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One measure to compute, and where it goes.

    Attributes:
        measure: None where a driver of its own computes it.
        settings: what the numbers depend on.
        companions: long table that goes beside the scores (`ci`, `pvalue`, `calibrated`) -> its settings.
    """

    measure: AnyMeasure | None
    file: ResultFile
    settings: Facts
    companions: Mapping[str, Facts] = field(default_factory=dict)

    def done(self, root: Path, overwrite: bool) -> bool:
        """Whether all files are there, made with these settings; says why they are kept or made anew."""
        status = results.check(root, self.file, self.settings, companions=self.companions)
        if status and not overwrite:
            logger.info(status.reason)
            return True
        if status.path.exists():
            logger.info("{}", "computing anew: --overwrite" if status else status.reason)
        return False


def add_permutations(group: argparse._ArgumentGroup) -> None:
    """The flag -p of rep.py and func.py."""
    text = (
        f"random permutations for the baseline, {PERMUTATIONS} if -p stands alone, none without it; p-values and "
        f"calibrated scores want {PERMUTATIONS} or more (below 19 every calibrated score is 0)"
    )
    group.add_argument(
        "-p", "--perturbs", nargs="?", type=cli.non_negative_int, const=PERMUTATIONS, default=0, help=text
    )


def select(names: Sequence[str], of: str) -> list[str]:
    """Measures `of` representations or outputs that are named, or that are on a list such as `paper` that is."""
    return [key for key, card in CARDS.items() if card.of == of and {key, *card.lists} & set(names)]


def fill_cache(models: Models, image_sets: Sequence[ImageSet]) -> None:
    """Extract what the cache lacks."""
    for images in image_sets:
        count = len(models.extractions(images))
        logger.info("cache {}: {} models on {}", models.cache_dir, count, images.source or images.dataset)


def run_measures(
    args: argparse.Namespace,
    models: Models,
    image_sets: Sequence[ImageSet],
    options: Mapping[str, Any],
    as_input: Callable[[Extraction, Tensor], Any],
    facts_on: Callable[[Mapping[str, Extraction], Tensor], Facts] | None = None,
) -> int:
    """Compute and save what is not there yet; return how many measures could not be computed.

    Args:
        args: the command line; `args.measures` are keys of cards.
        models, image_sets: what `inputs.start` returned.
        options: settings of measures (`knn`, `center`, `normalize`, ...); each gets those it knows.
        as_input: (extraction, labels) -> what the measures want.
        facts_on: (extractions by model, labels) -> facts on the models for the record of every result.
    """
    tasks = _plan(args, options, describe(models, image_sets))
    todo = {task.measure.name: task for task in tasks if not task.done(args.results, args.overwrite)}
    if not todo:
        return 0
    facts: dict[str, Facts] = {}
    widths: dict[str, int] = {}  # measures such as Procrustes and k-NN depend on them
    flatten = not any(CARDS[key].maps for key in args.measures)

    def inputs_of(images: ImageSet) -> dict[str, Any]:
        extractions, labels = models.extractions(images, flatten=flatten), images.labels
        if facts_on is not None:
            facts[images.source] = facts_on(extractions, labels)
        elif flatten:
            widths.update({name: extraction.reps.shape[1] for name, extraction in extractions.items()})
        return {name: as_input(extraction, labels) for name, extraction in extractions.items()}

    def save(comparison: Comparison) -> None:
        for note in comparison.notes:
            logger.warning("{}: nan, {}", comparison.name, note)
        if comparison.failure is not None:
            logger.error("{} was not computed: {}", comparison.name, comparison.failure)
        else:
            _save(
                args, todo[comparison.name], comparison, {**_by_source(facts), **({"widths": widths} if widths else {})}
            )

    measures = [task.measure for task in todo.values()]
    settings = {"permutations": args.perturbs, "ci": args.ci, "seed": args.seed, "device": args.device}
    settings |= {"quiet": args.quiet, "on_result": save}
    if image_sets[0].source:
        made_through = {images.source: images for images in image_sets}
        done = compare.rowwise(list(made_through), lambda source: inputs_of(made_through[source]), measures, **settings)
    else:
        done = compare.pairwise(inputs_of(image_sets[0]), measures, **settings)
    failed = [name for name, comparison in done.items() if comparison.failure is not None]
    if failed:
        logger.error("{} of {} measures could not be computed: {}", len(failed), len(done), ", ".join(failed))
    return len(failed)


def run_stir(args: argparse.Namespace, models: Models, image_sets: Sequence[ImageSet]) -> int:
    """Compute and save STIR on inverted images; return 1 if it could not be computed."""
    settings = {"measure": "stir", **describe(models, image_sets)}
    task = Task(None, _file(args, "stir"), settings)
    if task.done(args.results, args.overwrite):
        return 0
    made_through = {images.source: images for images in image_sets}

    def reps(images: ImageSet) -> dict[str, Tensor]:
        return {name: extraction.reps for name, extraction in models.extractions(images).items()}

    targets = reps(open_targets(args, models))
    comparison = compare.stir(targets, lambda source: reps(made_through[source]), device=args.device, quiet=args.quiet)
    if comparison.failure is not None:
        logger.error("stir was not computed: {}", comparison.failure)
        return 1
    _save(args, task, comparison)
    return 0


def describe(models: Models, image_sets: Sequence[ImageSet]) -> dict[str, Any]:
    """What decides a score besides the measure's own settings."""
    read = {name: getattr(models, name) for name in ("node", "pool") if getattr(models, name)}
    return {
        **read,
        "inputs": {images.source or "all": asdict(images.identity) for images in image_sets},
        "models": {name: {"checkpoint": digest} for name, digest in models.hashes.items()},
        "precision": models.precision,
    }


def _file(args: argparse.Namespace, key: str, **options: Any) -> ResultFile:
    return ResultFile(
        key, dataset_name(args.dataset), dataset_name(args.models), args.eps, args.exp,
        inverted=bool(args.inv or args.adv), adversarial=bool(args.adv), sample=bool(args.sample), **options,
    )  # fmt: skip


def _plan(args: argparse.Namespace, options: Mapping[str, Any], described: Mapping[str, Any]) -> list[Task]:
    """The measures asked for, each with the options it knows; statistics have no baseline and are left out with -p."""
    named = {name: options[name] for name in ("center", "normalize", "function") if name in options}
    tasks = []
    for key in args.measures:
        measure = CARDS[key].build(options)
        if args.perturbs and not isinstance(measure, Measure):
            logger.info("{} has no permutation baseline: skipped with -p", key)
            continue
        mine = CARDS[key].settings(options)
        mine.pop("workers", None)  # how a score is computed, not which score it is
        if args.perturbs:
            mine |= {"permutations": args.perturbs, "permutation_seed": args.seed, "calibration": "with score"}
        settings, companions = {"measure": key, **mine, **described}, {}
        if isinstance(measure, Measure):
            if args.ci is not None:
                companions["ci"] = {**settings, "level": args.ci}
                if (method := interval_method(measure)) in ("share", "trials"):  # others are as they have always been
                    companions["ci"]["interval"] = method
            if args.perturbs:
                companions["pvalue"] = settings
                if measure.self_score is not None:
                    companions["calibrated"] = settings
        tasks.append(Task(measure, _file(args, key, baseline=args.perturbs > 0, **named), settings, companions))
    return tasks


def _save(args: argparse.Namespace, task: Task, comparison: Comparison, facts: Facts | None = None) -> None:
    """Write the scores (with permutations their baseline) and what goes beside them."""
    record = {"arguments": vars(args), **runs.provenance(), **(facts or {})}
    if comparison.spread is not None:
        record["spread"] = comparison.spread.to_dict()
    scores = comparison.scores if comparison.permuted is None else comparison.baseline
    results.write(args.results, task.file, scores, task.settings, record, singles=comparison.permuted)
    for name, settings in task.companions.items():
        results.write_companion(args.results, task.file, name, _companion(comparison, name), settings, record)


def _companion(comparison: Comparison, name: str) -> pd.DataFrame:
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


def _by_source(facts: Mapping[str, Facts]) -> dict[str, Any]:
    """Facts as they are for one set of images; for several, those that are by model become a dict by source."""
    if set(facts) == {""}:
        return dict(facts[""])
    merged: dict[str, Any] = {}
    for source, facts_on_it in facts.items():
        for name, value in facts_on_it.items():
            if isinstance(value, Mapping):
                merged.setdefault(name, {})[source] = value
            else:
                merged[name] = value
    return merged
