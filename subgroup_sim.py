"""Representational similarity on the images on which two models agree and on those on which they differ.

    python rep.py -d imagenet100 -m imagenet100 -o eps0 --cache-dir cache --no-comparisons
    python rep.py -d imagenet100 -m imagenet100 -o eps3 --cache-dir cache --no-comparisons
    python subgroup_sim.py --cache-dir cache --dataset imagenet100 --eps eps0 eps3

Both groups count as many images: the larger one is cut to the size of the smaller one, 10 times at random, and the
score is the mean. Otherwise most of what Procrustes, k-NN and RTD show is the difference in size.

Reads what rep.py or func.py cached and adds to one long table, results/subgroups/<dataset>/repsim_subgroups.csv, after
each measure. Columns n and n_group are the images compared and those in the whole group, spread the standard deviation
over the cuts. The JSON beside it says how each row was made (column made): what is in it already is not computed again,
rows of other radii, images or procedures stay. Where the smaller group is too small for a measure the score is empty.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from univ import cli, files, results, runs
from univ.compare.subgroup_rows import PROCEDURE, add_rows, cached_models, read_rows
from univ.compare.subgroup_scores import MEASURES
from univ.data import DATASETS, DatasetNames, dataset_name
from univ.eps import EPS, eps_value
from univ.models import source_names
from univ.results import made


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--cache-dir", type=cli.existing_dir, required=True, help="where rep.py or func.py kept representations")
    add("--dataset", "-d", choices=DatasetNames(DATASETS), default="imagenet100", help="images compared on")
    add("--eps", nargs="+", choices=EPS, default=["eps0", "eps3"], help="radii of the models")
    text = "1: on the images inverted through the first model of a pair"
    add("--inv", type=int, choices=(0, 1), default=0, help=text)
    add("--results", type=cli.output_dir, help="folder of the table; default: results/subgroups/<dataset>")
    text = "these models only, named as for rep.py --model-names; default: all in the cache"
    add("--models", nargs="+", metavar="MODEL", help=text)
    add("--measures", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to compute")
    add("-f", "--function", choices=("euc", "cos_sim"), default="euc", help="Euclidean or cosine neighbours of jacc")
    text = "the original's procedure: groups of unequal size, CKA accumulates over both, the point is its own neighbour"
    add("--published", action="store_true", help=text)
    text = "cut both groups to the size of the smaller one, 10 times at random; default: yes, with --published no"
    add("--size-matched", action=argparse.BooleanOptionalAction, help=text)
    add("--overwrite", action="store_true", help="compute these rows anew where they are there already")
    cli.add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.size_matched is None:
        args.size_matched = not args.published
    if args.results is None:
        args.results = Path("results/subgroups") / dataset_name(args.dataset)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    names = list(source_names(args.models)) if args.models else None
    path, inverted = args.results / results.SUBGROUPS_NAME, bool(args.inv)
    dataset = dataset_name(args.dataset)
    common = {"dataset": dataset, "input": "inverted" if inverted else "standard"}
    common |= {name: getattr(args, name) for name in PROCEDURE}
    options = {"workers": args.workers or None, "device": args.device, "quiet": args.quiet, "overwrite": args.overwrite}
    record = {"arguments": vars(args), **runs.provenance()}
    with files.locked(made.record_path(path), wait=True):  # whoever comes second finds the rows of the first
        rows = read_rows(path)
        for eps in args.eps:
            for models in cached_models(args.cache_dir, dataset, eps, inverted=inverted, names=names):
                add_rows(rows, models, args.measures, common, str(eps_value(eps)), record, **options)
    if empty := sum(map(math.isnan, rows.table.get("score", []))):
        logger.warning("{} of {} scores are empty: a group is too small for the measure", empty, len(rows.table))
    logger.info("{} holds {} scores", path, len(rows.table))


if __name__ == "__main__":
    cli.run(main)
