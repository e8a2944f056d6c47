"""Compare all layers of one model, or of several, with each other.

    python scripts/layers.py resnet50 -d imagenet -m imagenet -o eps3
    python scripts/layers.py resnet50 vgg16_bn -d imagenet -o eps0 --node '**.conv?' head --num-inputs 2000
    python scripts/layers.py resnet10 -d digits -m digits -o eps1 -r cka jacc --exact --pool mean --cache-dir cache

One pass over the images gives CKA of every two layers, as the average of unbiased HSIC over batches: right in
expectation for any --batch, and less noisy the larger it is. With --exact all images are one batch, and other measures
work too; the representations then go through the cache. Writes, below <results>/layers/<data set>/, a CSV with a row
per pair of layers, a heat map (PDF, PNG) and a JSON of all settings; what was made with the same settings is kept, and
a killed run continues.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # univ, when it is not installed

import pandas as pd
from loguru import logger

from univ import cli, runs
from univ.compare import inputs, layers, run
from univ.errors import InputError
from univ.measures import CARDS
from univ.models import MODELS_HELP, source_text
from univ.models.precision import PRECISIONS
from univ.reps import nodes
from univ.results import made
from univ.show import maps, plots

BATCH = 256  # as in Nguyen et al.


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    text = f"each is compared with itself, and with every other: {MODELS_HELP}"
    parser.add_argument("model_names", type=source_text, nargs="+", metavar="MODEL", help=text)
    group = parser.add_argument_group("measures")
    add = group.add_argument
    names = [key for key, card in CARDS.items() if card.of == "reps" and card.pairs and not card.maps]
    text = f"cka; with --exact also {', '.join(name for name in names if name != 'cka')}"
    add("-r", "--rep", nargs="+", choices=names, default=["cka"], metavar="MEASURE", help=text)
    add("--exact", action="store_true", help="all images at once, on representations in --cache-dir")
    text = f"neighbours per image of {', '.join(key for key in names if CARDS[key].neighbors)}"
    add("-k", "--knn", type=cli.positive_int, default=10, help=text)
    inputs.add_selection(parser, batch=BATCH)
    nodes.add_arguments(parser.add_argument_group("layers"), many=True)
    inputs.add_output(parser)
    cli.add_common_arguments(parser, precisions=PRECISIONS)
    parser.set_defaults(inv=0, adv=0, sample=0, no_comparisons=False, pool="flatten")
    args = parser.parse_args(argv)
    inputs.check_arguments(parser, args)
    args.node = args.node or [nodes.ALL]
    if args.exact and args.cache_dir is None:
        parser.error("--exact compares representations that are kept: say where with --cache-dir")
    if not args.exact and args.rep != ["cka"]:
        parser.error("only cka is an average over batches: the others want --exact")
    if args.batch < layers.LEAST_BATCH:
        parser.error(f"-b/--batch {args.batch}: batches of {layers.LEAST_BATCH} images or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    models = inputs.start_models(args)
    if args.list_nodes:
        for name in models.sources:
            nodes.print_nodes(name, models.network(name))
        return
    (images,) = inputs.open_image_sets(args, models)
    where = {name: nodes.find_nodes(models.network(name), args.node) for name in models.sources}
    if args.exact and args.knn >= len(images) and any(CARDS[key].neighbors for key in args.rep):
        raise InputError(f"--knn {args.knn} neighbours need more than {args.knn} images, there are {len(images)}")
    options = {"knn": args.knn, "seed": args.seed}
    todo = {}
    for key in args.rep:
        settings = {**run.describe(models, [images]), "measure": key, "layers": where, "pool": args.pool}
        settings |= CARDS[key].settings(options) if args.exact else {"batch": args.batch, "seed": args.seed}
        path = layers.result_path(args, models, key)
        status = made.check(path, settings)
        if status and path.with_suffix(".png").is_file() and not args.overwrite:
            logger.info(status.reason)
            continue
        todo[key] = (path, settings)
    failed = 0
    if args.exact and todo:
        measures = [CARDS[key].build(options) for key in todo]
        for key, scores in layers.exact_scores(models, images, where, measures, pool=args.pool).items():
            if isinstance(scores, str):
                logger.error("{} was not computed: {}", key, scores)
                failed += 1
            else:
                _write(args, key, *todo[key], layers.table(where, scores.to_numpy(), key, len(images), len(images)))
    elif todo:
        path, settings = todo["cka"]
        unfinished = path.with_suffix(".partial")
        how = {"pool": args.pool, "batch": args.batch, "seed": args.seed, "unfinished": unfinished}
        scores, batch = layers.minibatch_cka(models, images, where, **how)
        _write(args, "cka", path, settings, layers.table(where, scores.numpy(), "cka", len(images), batch))
        unfinished.unlink(missing_ok=True)
    if failed:
        raise SystemExit(1)


def _write(args: argparse.Namespace, measure: str, path: Path, settings: dict[str, Any], table: pd.DataFrame) -> None:
    made.write_csv(path, table.to_csv(index=False), settings, {"arguments": vars(args), **runs.provenance()})
    logger.info("wrote {}", path)
    label = CARDS[measure].label or measure
    plots.save(maps.layer_maps(table, label), path.with_suffix(""))


if __name__ == "__main__":
    cli.run(main)
