"""Invert images: change seed images until a model represents them like target images of another class.

    python inversion.py -d digits -m resnext14_4x32d -e eps1 -n 200 -u 360 --iterations 100 --step-size 1
    python inversion.py -d imagenet100 -m resnet50 -e eps3 -s seeds.csv -t targets.csv --precision bf16
    torchrun --nproc-per-node 4 inversion.py -d imagenet -m resnet50 vgg16_bn -e eps3 -n 10000 -u 50000 --uint8

Writes <inverted-imgs-path>/<model>_<eps>.pt and, beside it, a .csv (how near every image came to its target), a .png
(some of them, from the best to the worst) and a .json (settings). A killed run continues where it stopped when the same
command is given again.
"""

import argparse
import contextlib
from collections.abc import Sequence

from univ import cli, runs
from univ.data import DATASETS, DatasetNames, dataset_name, inverted_path, trainable
from univ.eps import EPS
from univ.inversion import jobs, run
from univ.models import MODELS_HELP, source_text
from univ.models.precision import PRECISIONS
from univ.reps import nodes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    group = parser.add_argument_group("models")
    add = group.add_argument
    add(
        "-m",
        "--model",
        type=source_text,
        nargs="+",
        required=True,
        help=f"models to invert images through: {MODELS_HELP}",
    )
    text = "what they were trained on (default: --dataset; sat6: imagenet)"
    add("-p", "--pretrain-dataset", choices=DatasetNames(trainable()), help=text)
    add("-e", "--eps", nargs="+", choices=EPS, default=["eps0"], help="L2 radius of their adversarial training")
    text = "folder of their checkpoints (default: data/cnns/<pretrain-dataset>/<eps>)"
    add("--model-dir", type=cli.existing_dir, help=text)
    cli.add_pixel_statistics(group)

    group = parser.add_argument_group("images")
    add = group.add_argument
    add("-d", "--dataset", choices=DatasetNames(DATASETS), default="imagenet", help="of seeds and targets")
    add("--data-path", type=cli.existing_path, help="its images (default: see data/README.md)")
    add("--labels-path", type=cli.existing_file, help="their labels, where the images are files")
    text = "index file (default: <inverted-imgs-path>/{}_indices.csv)"
    add("-s", "--seed-indices-path", type=cli.path, help=text.format("seed"))
    add("-t", "--target-indices-path", type=cli.path, help=text.format("target"))
    text = (
        "draw this many targets, and seeds of other classes, and write both index files; only with -u, or where there "
        "are no index files (drawn from all images then); otherwise they are read"
    )
    add("-n", "--num-imgs-to-invert", type=cli.non_negative_int, default=0, help=text)
    add("-u", "--upper-bound-idx", type=cli.non_negative_int, default=0, help="with -n: draw indices below this one")
    add("--random-state", type=cli.seed, default=573098435098230, help="seed of the draw (and of the noise)")
    cli.add_fast_images(group)

    group = parser.add_argument_group("inversion")
    add = group.add_argument
    add("--iterations", type=cli.positive_int, default=1000, help="steps per image")
    text = "L2 length of a step, pixels being in [0, 1]"
    add("--step-size", type=cli.positive_number, default=1 / 8, help=text)
    text = "stop an image when its relative distance improves less than this in 100 iterations (default: never)"
    add("--tol", type=cli.positive_number, help=text)
    add("--init", choices=("seed", "noise"), default="seed", help="what the iteration starts from")
    add("-b", "--batch", type=cli.positive_int, default=64, help="images at a time, per process")
    text = "launch every kernel by itself: for networks that cannot be captured"
    add("--no-cuda-graph", action="store_true", help=text)

    nodes.add_arguments(group)

    group = parser.add_argument_group("output")
    add = group.add_argument
    text = "folder to write to (default: data/<dataset>/inverted)"
    add("-i", "--inverted-imgs-path", type=cli.output_dir, help=text)
    add("--uint8", action="store_true", help="store round(255 x), a quarter of the size of float32")
    add("--overwrite", action="store_true", help="replace an existing file; discard unfinished others")
    cli.add_common_arguments(parser, precisions=PRECISIONS)

    args = parser.parse_args(argv)
    if args.model_dir is not None and len(args.eps) > 1:
        parser.error(f"--model-dir is the folder of one radius, but --eps names {len(args.eps)}: {', '.join(args.eps)}")
    args.model, args.eps = list(dict.fromkeys(args.model)), list(dict.fromkeys(args.eps))
    if args.pretrain_dataset is None:
        args.pretrain_dataset = args.dataset if args.dataset in DatasetNames(trainable()) else "imagenet"
    if args.inverted_imgs_path is None:
        args.inverted_imgs_path = inverted_path(dataset_name(args.dataset))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    if args.list_nodes:
        jobs.print_nodes(args)
        return
    processes = runs.Distributed.from_environment(args.device)
    with contextlib.ExitStack() as stack:
        stack.callback(processes.close)
        # The only time that processes wait for each other; from here on they meet in the folders of parts.
        for job in processes.broadcast(jobs.plan(args, stack) if processes.is_main else None):
            run.make(args, job, processes)


if __name__ == "__main__":
    cli.run(main)
