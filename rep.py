"""Score models by representational similarity on standard, inverted or adversarial images.

    python rep.py -d imagenet100 -m imagenet100 -o eps3 -r paper
    python rep.py -d imagenet100 -m imagenet100 -o eps3 -r cka proc -i 1
    python rep.py -d cifar10 -m cifar10 -o eps1 -r jacc -k 10 --model-names resnet18 vgg16
    python rep.py --reps A.npy B.safetensors -r cka rsa --dataset-name sentences
    python rep.py -d digits -m digits -o eps1 --cache-dir cache --no-comparisons
    python rep.py -d digits -m digits -o eps1 -r cka --model-names resnet10 --node 'layer*' --pool mean

Writes one CSV per measure below results/, each with a JSON of all settings beside it; a CSV that was made with the
same settings is kept. On inverted images the column names the model whose images were used.
"""

import argparse
from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from univ import cli
from univ.compare import given, inputs, run
from univ.errors import InputError
from univ.measures import CARDS
from univ.measures.rsa import Comparison, Dissimilarity
from univ.models.precision import PRECISIONS
from univ.reps import nodes
from univ.reps.extract import Extraction


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    group = parser.add_argument_group("measures")
    add = group.add_argument
    names = [key for key, card in CARDS.items() if card.of == "reps"] + ["stir", "all", "paper", "more"]
    paper, more = (" ".join(run.select([name], "reps")) for name in ("paper", "more"))
    text = (
        f"{', '.join(names)}. paper: {paper}; all: the original's list, without shape, which reads "
        f"(N, C, H, W) activations; more: {more}; stir: with -i 1, needs inversion.py's reports"
    )
    add("-r", "--rep", nargs="+", choices=names, default=["all"], metavar="MEASURE", help=text)
    text = f"neighbours per image of {', '.join(key for key, card in CARDS.items() if card.neighbors)}"
    text += "; mutual_knn and cknna take 10, imd 5"
    add("-k", "--knn", type=cli.positive_int, default=500, help=text)
    add("-f", "--function", choices=("euc", "cos_sim"), default="cos_sim", help="Euclidean or cosine neighbours")
    add("-c", "--center", type=int, choices=(0, 1), default=1, help="1: centre the representations (cka always does)")
    add("-n", "--norm", type=int, choices=(0, 1), default=1, help="1: scale to Frobenius norm 1 for proc")
    add("-a", "--alpha", type=cli.fraction, default=1.0, help="shape: 1 rotation only, 0 whitened (any linear map)")
    add("--gulp-lambda", type=cli.non_negative_number, default=0.0, help="ridge of gulp")
    add("--rtd-trials", type=cli.positive_int, default=10, help="subsamples rtd is averaged over")
    add("--rtd-batch", type=cli.positive_int, default=500, help="images per subsample of rtd")
    text = "between images, for rsa"
    add("--rsa-dissimilarity", choices=get_args(Dissimilarity), default="correlation", help=text)
    text = "of both models' dissimilarities, for rsa (kendall: tau-a)"
    add("--rsa-comparison", choices=get_args(Comparison), default="spearman", help=text)
    nodes.add_arguments(parser.add_argument_group("layers"), many=True)
    run.add_permutations(group)
    add("--published", action="store_true", help="the original's neighbours: own similarity 0, or the point itself")
    inputs.add_arguments(parser)
    given.add_arguments(parser, "reps")
    cli.add_common_arguments(parser, precisions=PRECISIONS)
    args = parser.parse_args(argv)
    inputs.check_arguments(parser, args)
    given.check_arguments(parser, args, argv, "reps")
    args.measures = run.select(args.rep, "reps")
    if "stir" in args.rep and (len(args.rep) > 1 or not args.inv or args.sample):
        parser.error("-r stir compares inverted images with their targets: run it by itself, with -i 1")
    if len(args.measures) > 1 and (maps := [key for key in args.measures if CARDS[key].maps]):
        parser.error(f"-r {maps[0]} reads (N, C, H, W) activations: run it by itself")
    return args


def as_reps(extraction: Extraction, labels: Tensor) -> Tensor:
    """Representations, row i from image i."""
    return extraction.reps


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.reps:
        if compare_at(args, *given.start(args, "reps")):
            raise SystemExit(1)
        return
    models = inputs.start_models(args)
    if args.list_nodes:
        for name in models.sources:
            nodes.print_nodes(name, models.network(name))
        return
    image_sets = inputs.open_image_sets(args, models)
    failed = 0
    for node in models.find_nodes(args.node) if args.node else [None]:
        there = nodes.node_folder(args.results, node, args.pool)
        own = argparse.Namespace(**vars(args) | {"results": there, "node": node})
        failed += compare_at(own, models.at(node, args.pool), image_sets)
    if failed:
        raise SystemExit(1)


def compare_at(
    args: argparse.Namespace, models: inputs.Models | given.GivenModels, image_sets: Sequence[inputs.ImageSet]
) -> int:
    """Compare the models at one node; return how many measures could not be computed."""
    if args.no_comparisons:
        run.fill_cache(models, image_sets)
        return 0
    n = min(map(len, image_sets))
    if args.knn >= n and any(CARDS[key].neighbors for key in args.measures):
        raise InputError(f"--knn {args.knn} neighbours need more than {args.knn} images, there are {n}: lower --knn")
    options = {
        "knn": args.knn,
        "center": bool(args.center),
        "normalize": bool(args.norm),
        "alpha": args.alpha,
        "gulp_lambda": args.gulp_lambda,
        "rsa_dissimilarity": args.rsa_dissimilarity,
        "rsa_comparison": args.rsa_comparison,
        "trials": args.rtd_trials,
        "batch": args.rtd_batch,
        "published": args.published,
        "seed": args.seed,
        "workers": args.workers or None,
        "function": args.function,
    }
    if args.rep == ["stir"]:
        return run.run_stir(args, models, image_sets)
    return run.run_measures(args, models, image_sets, options, as_reps)


if __name__ == "__main__":
    cli.run(main)
