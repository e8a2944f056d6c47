"""Representational similarity on the images on which two models agree and on those on which they differ.

    python rep.py -d imagenet100 -m imagenet100 -o eps0 --cache-dir cache --no-comparisons
    python rep.py -d imagenet100 -m imagenet100 -o eps3 --cache-dir cache --no-comparisons
    python subgroup_sim.py --cache-dir cache --dataset imagenet100 --eps eps0 eps3

Reads what rep.py or func.py cached and writes one long table, results/subgroups/<dataset>/repsim_subgroups.csv, after
each measure; what is in it already is not computed again. A group too small for a measure has an empty score.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from torch import Tensor

from univ import cli, compare, results, runs
from univ.cache import Cached, read_cache
from univ.data import DATASETS
from univ.eps import EPS, eps_value
from univ.errors import InputError

MEASURES = ("cka", "proc", "rtd", "jacc")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--cache-dir", type=cli.existing_dir, required=True, help="where rep.py or func.py kept representations")
    add("--dataset", "-d", choices=list(DATASETS), default="imagenet100", help="images compared on")
    add("--eps", nargs="+", choices=EPS, default=["eps0", "eps3"], help="radii of the models")
    add(
        "--inv", type=int, choices=(0, 1), default=0, help="1: on the images inverted through the first model of a pair"
    )
    add("--results", type=Path, help="folder of the table; default: results/subgroups/<dataset>")
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
    add("--overwrite", action="store_true", help="compute anew what is there already")
    cli.add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.results is None:
        args.results = Path("results/subgroups") / args.dataset
    return args


def same_images(reps: Cached, outputs: Cached, names: Sequence[str]) -> None:
    """Refuse representations and outputs of different images."""
    first = reps.inputs[names[0]]
    for name in names:
        first.require_same(reps.inputs[name], f"the representations of {names[0]} and {name}")
        first.require_same(outputs.inputs[name], f"the representations of {names[0]} and the outputs of {name}")


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


def read_done(path: Path, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of an earlier run with the same settings; empty if there is none."""
    status = results.check_csv(path, settings)
    if not status:
        if path.exists():
            logger.info("computing anew: {}", status.reason)
        return pd.DataFrame(columns=[*compare.SUBGROUP_COLUMNS, "eps", "dataset"])
    return pd.read_csv(path, dtype={"eps": str})


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    path = args.results / results.SUBGROUPS_NAME
    caches = {
        eps: tuple(
            read_cache(args.cache_dir, kind, args.dataset, eps, inverted=bool(args.inv)) for kind in ("reps", "output")
        )
        for eps in args.eps
    }
    settings = {
        "dataset": args.dataset,
        "input": "inverted" if args.inv else "standard",
        "function": args.function,
        "published": args.published,
        "size_matched": args.size_matched,
        "seed": args.seed,
        "inputs": {eps: {key: vars(found) for key, found in reps.inputs.items()} for eps, (reps, _) in caches.items()},
    }
    record = {"arguments": vars(args), **runs.provenance()}
    table = read_done(path, settings)
    if args.overwrite:
        table = table.iloc[:0]

    for eps, (reps, outputs) in caches.items():
        for keys in sets_of_models(list(reps.tensors), args.models, eps):
            same_images(reps, outputs, keys)
            names = [key.rpartition("/")[2] for key in keys]
            tensors = dict(zip(names, (reps.tensors[key] for key in keys)))
            preds = dict(zip(names, (_predictions(outputs.tensors[key]) for key in keys)))
            here = table[table["eps"] == str(eps_value(eps))]

            def save(rows: pd.DataFrame, eps: str = eps) -> None:
                nonlocal table
                rows = rows.assign(eps=str(eps_value(eps)), dataset=args.dataset)
                table = rows if table.empty else pd.concat([table, rows], ignore_index=True)
                results.write_csv(path, table.to_csv(index=False), settings, record)

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
                done=set(here[["metric", "model1", "model2"]].itertuples(index=False, name=None)),
                on_result=save,
                quiet=args.quiet,
            )
    empty = int(table["score"].isna().sum())
    if empty:
        logger.warning("{} of {} scores are empty: the group is too small for the measure", empty, len(table))
    logger.info("{} holds {} scores", path, len(table))


def _predictions(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


if __name__ == "__main__":
    cli.run(main)
