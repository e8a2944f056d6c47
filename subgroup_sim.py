"""Representational similarity on the images on which two models agree and on those on which they differ.

    python rep.py -d imagenet100 -m imagenet100 -o eps0 --cache-dir cache --no-comparisons
    python rep.py -d imagenet100 -m imagenet100 -o eps3 --cache-dir cache --no-comparisons
    python subgroup_sim.py --cache-dir cache --dataset imagenet100 --eps eps0 eps3

Reads what rep.py or func.py cached and adds to one long table, results/subgroups/<dataset>/repsim_subgroups.csv, after
each measure. The JSON beside it says how each row was made (column made): what is in it already is not computed again,
rows of other radii, images or procedures stay. A group too small for a measure has an empty score.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from torch import Tensor

from univ import cli, compare, files, results, runs
from univ.data import DATASETS
from univ.eps import EPS, eps_value
from univ.errors import InputError
from univ.files import schemas
from univ.reps.cache import Cached, read_cache, require_same
from univ.results import made

MEASURES = ("cka", "proc", "rtd", "jacc")
PROCEDURE = ("function", "published", "size_matched", "seed")  # flags that decide the numbers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--cache-dir", type=cli.existing_dir, required=True, help="where rep.py or func.py kept representations")
    add("--dataset", "-d", choices=list(DATASETS), default="imagenet100", help="images compared on")
    add("--eps", nargs="+", choices=EPS, default=["eps0", "eps3"], help="radii of the models")
    add(
        "--inv", type=int, choices=(0, 1), default=0, help="1: on the images inverted through the first model of a pair"
    )
    add("--results", type=cli.output_dir, help="folder of the table; default: results/subgroups/<dataset>")
    add("--models", nargs="+", metavar="MODEL", help="these models only; default: all in the cache")
    add("--measures", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to compute")
    add("-f", "--function", choices=("euc", "cos_sim"), default="euc", help="Euclidean or cosine neighbours of jacc")
    add(
        "--published",
        action="store_true",
        help="the original's procedure: CKA accumulates over both groups, the point is its own neighbour",
    )
    add(
        "--size-matched", action="store_true", help="cut both groups to the size of the smaller one, 10 times at random"
    )
    add("--overwrite", action="store_true", help="compute these rows anew where they are there already")
    cli.add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.results is None:
        args.results = Path("results/subgroups") / args.dataset
    return args


def same_origin(reps: Cached, outputs: Cached, names: Sequence[str]) -> None:
    """Refuse representations and outputs of different images or precisions, or a model's of different checkpoints.

    Raises:
        InputError: names them, and what differs.
    """
    first = reps.identities[names[0]]
    for name in names:
        mine = reps.identities[name]
        if name not in outputs.identities:
            raise InputError(f"the cache holds the representations of {name}, but not its outputs: run rep.py again")
        require_same(mine, outputs.identities[name], f"the representations and the outputs of {name}")
        require_same(first.inputs, mine.inputs, f"the representations of {names[0]} and {name}")
        if first.precision != mine.precision:
            raise InputError(
                f"the representations of {names[0]} and {name} were made in {first.precision} and {mine.precision}: "
                "run rep.py again with one --precision"
            )


def sets_of_models(keys: Sequence[str], models: Sequence[str] | None, eps: str) -> list[list[str]]:
    """Keys of the models to compare with each other.

    On regular images all models; on inverted ones (keys source/model) each source with every other model on its images.

    Raises:
        InputError: a model asked for is not in the cache.
    """
    there = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
    if missing := [name for name in models or () if name not in there]:
        raise InputError(f"--models {' '.join(missing)}: not in the cache of {eps}, which holds {', '.join(there)}")
    names = [name for name in there if models is None or name in models]
    if "/" not in keys[0]:
        return [names]
    return [[f"{source}/{source}", f"{source}/{other}"] for source in names for other in names if other != source]


def read_rows(path: Path) -> made.Rows:
    """The rows that are there. Those of a table with one JSON for all rows get an entry each by radius."""
    if path.is_file():
        schemas.read_table(path, schemas.SubgroupRow)  # says what is wrong with a damaged or foreign one
    rows = made.Rows.read(path)
    of_all = results.read_record(path).get("settings", {})
    if not rows.settings and of_all and not rows.table.empty:
        for eps, group in rows.table.groupby("eps"):
            settings = {**{key: of_all.get(key) for key in ("dataset", "input", *PROCEDURE)}, "eps": eps}
            rows.settings[made.Rows.entry(settings)] = settings
            rows.table.loc[group.index, made.ROW_COLUMN] = made.Rows.entry(settings)
    if "input" not in rows.table and not rows.table.empty:
        rows.table["input"] = of_all.get("input", "inverted" if path.parent.name == "inverted" else "standard")
    return rows


def without_models(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a row from others of the same models and measure."""
    return {key: value for key, value in settings.items() if key != "models"}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    path = args.results / results.SUBGROUPS_NAME
    with files.locked(made.record_path(path), wait=True):  # whoever comes second finds the rows of the first
        add_rows(args, read_rows(path))


def add_rows(args: argparse.Namespace, rows: made.Rows) -> None:
    """Compute what is not there yet, and add it to the table after each measure."""
    common = {
        "dataset": args.dataset,
        "input": "inverted" if args.inv else "standard",
        **{name: getattr(args, name) for name in PROCEDURE},
    }
    record = {"arguments": vars(args), **runs.provenance()}
    for eps in args.eps:
        reps, outputs = (
            read_cache(args.cache_dir, kind, args.dataset, eps, inverted=bool(args.inv)) for kind in ("reps", "output")
        )
        about = {**common, "eps": str(eps_value(eps))}
        for keys in sets_of_models(list(reps.tensors), args.models, eps):
            same_origin(reps, outputs, keys)
            names = [key.rpartition("/")[2] for key in keys]
            tensors = dict(zip(names, (reps.tensors[key] for key in keys)))
            preds = dict(zip(names, (_predictions(outputs.tensors[key]) for key in keys)))
            identities = dict(zip(names, (asdict(reps.identities[key]) for key in keys)))

            def settings_of(model1: str, model2: str, about=about, identities=identities) -> dict[str, Any]:
                return {**about, "models": {name: identities[name] for name in (model1, model2)}}

            def save(new: pd.DataFrame, about=about, settings_of=settings_of) -> None:
                settings = [settings_of(*pair) for pair in zip(new["model1"], new["model2"])]
                remove_replaced(rows, new, about)
                rows.add(new.assign(**{name: about[name] for name in ("eps", "dataset", "input")}), settings)
                rows.write(common, record)

            pairs = itertools.combinations(names, 2)
            done = set() if args.overwrite else done_already(rows, {pair: settings_of(*pair) for pair in pairs}, about)
            compare.subgroups(
                tensors,
                preds,
                args.measures,
                published=args.published,
                size_matched=args.size_matched,
                function=args.function,
                seed=args.seed,
                workers=args.workers or None,
                device=args.device,
                done=done,
                on_result=save,
                quiet=args.quiet,
            )
    if empty := int(rows.table["score"].isna().sum()):
        logger.warning("{} of {} scores are empty: the group is too small for the measure", empty, len(rows.table))
    logger.info("{} holds {} scores", rows.path, len(rows.table))


def done_already(
    rows: made.Rows, wanted: Mapping[tuple[str, str], Mapping[str, Any]], about: Mapping[str, Any]
) -> set[tuple[str, str, str]]:
    """(metric, model1, model2) of the rows that were made with the settings wanted for their pair.

    So count rows that nobody knows the settings of, as published ones are. Says of the others what differs.
    """
    done, differing = set(), {}
    for row in rows.table.itertuples(index=False) if not rows.table.empty else ():
        settings = wanted.get((row.model1, row.model2))
        if settings is None or (row.eps, row.input) != (about["eps"], about["input"]):
            continue
        found = rows.settings.get(getattr(row, made.ROW_COLUMN))
        if found is None or made.Rows.entry(settings) == getattr(row, made.ROW_COLUMN):
            done.add((row.metric, row.model1, row.model2))
        elif without_models(found) == without_models(settings):
            differing[row.model1, row.model2] = made.differences(found, settings)
    for (model1, model2), words in differing.items():
        logger.info("{} and {} are computed anew: {}", model1, model2, made.listed(words))
    return done


def remove_replaced(rows: made.Rows, new: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Drop the rows that new ones of the same measure, pair and procedure replace."""
    if rows.table.empty:
        return
    fresh = set(new[["metric", "model1", "model2"]].itertuples(index=False, name=None))
    same = {entry for entry, settings in rows.settings.items() if without_models(settings) == dict(about)}
    table = rows.table
    keys = table[["metric", "model1", "model2"]].itertuples(index=False, name=None)
    unknown = table[made.ROW_COLUMN].isna() & (table["eps"] == about["eps"]) & (table["input"] == about["input"])
    replaced = (table[made.ROW_COLUMN].isin(same) | unknown) & pd.Series([key in fresh for key in keys], table.index)
    rows.table = table[~replaced].reset_index(drop=True)


def _predictions(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


if __name__ == "__main__":
    cli.run(main)
