"""Train linear probes on the frozen representations of one model.

    python train_probe.py -m data/cnns/imagenet/eps3/resnet50.ckpt -d imagenet1k --num-probes 3 --epochs 30
    python train_probe.py -m data/cnns/imagenet/eps3/resnet50.ckpt -d imagenet1k --epochs 0 --num-probes 0
    python train_probe.py -a resnet50 -d imagenet1k --reps-file runs/r50/reps.pt --val-reps-file runs/r50/val_reps.pt
    python train_probe.py -m data/cnns/digits/eps1/vgg11.pt -d digits -b 64 --epochs 30

The second only extracts the representations (reps.pt, val_reps.pt in the run's folder; a killed extraction continues),
the third trains on them. Checkpoints (best accuracy, best loss) and TensorBoard logs go to
<runs>/<run-name>/<start time>/<i>/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from univ import cli, files, models, runs
from univ.data import DatasetNames, dataset_name, trainable
from univ.eps import eps_of_path
from univ.errors import InputError
from univ.models.names import parse_source
from univ.models.precision import PRECISIONS
from univ.reps import nodes, probing
from univ.reps.files import DTYPES


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    dataset_of = {"imagenet1k" if name == "imagenet" else name: name for name in trainable()}
    names = DatasetNames(sorted(dataset_of))
    group = parser.add_argument_group("model and data")
    add = group.add_argument
    text = f"model whose representations are frozen: a checkpoint FILE, or {models.MODELS_HELP}"
    add("-m", "--model-ckpt-path", type=models.source_text, metavar="MODEL", help=text)
    text = "architecture of -m's FILE; default: what its name says, or it says of itself"
    add("-a", "--model-arch", metavar="ARCH", help=text)
    cli.add_pixel_statistics(group)
    add("-d", "--dataset-name", choices=names, required=True, help="what the probes learn to classify")
    add("--pretrain-dataset", choices=names, help="what the model was trained on; default: the same")
    text = "images: an LMDB file, for CIFAR-10 its folder; default: the data set's usual place"
    add("--lmdb-file", type=cli.existing_path, help=f"training {text}")
    add("--labels-file", type=cli.existing_file, help="labels of the training images, one per line, instead of theirs")
    add("--reps-file", type=cli.existing_file, help="representations of the training images: nothing is extracted")
    add("--val-lmdb-file", type=cli.existing_path, help=f"validation {text}")
    add("--val-labels-file", type=cli.existing_file, help="labels of the validation images, instead of theirs")
    add("--val-reps-file", type=cli.existing_file, help="representations of the validation images")
    add("--reps-dtype", choices=sorted(DTYPES), default="float32", help="of extracted representations")
    cli.add_fast_images(group)
    nodes.add_arguments(group)
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("-b", "--batch", type=cli.positive_int, default=1024, help="representations per step of a probe")
    add("-w", "--workers", type=cli.processes, default=2, help="processes that decode images")
    add("--lr", type=cli.positive_number, default=5e-3, help="Adam's learning rate, falls to 1e-6 on a cosine")
    add("--epochs", type=cli.non_negative_int, default=10, help="0: only extract")
    add("--num-probes", type=cli.non_negative_int, default=1, help="trained together, seeds counting up from --seed")
    add("--log-every-n-batches", type=cli.positive_int, default=30, help="steps between TensorBoard's training losses")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--run-name", help="default: <dataset>/<architecture>_<eps>")
    add("--runs", type=cli.output_dir, default=Path("runs"), help="folder of the runs")
    text = "put representations in <cache-dir>/<run-name>/ instead of the run's folder"
    add("--cache-dir", type=cli.output_dir, help=text)
    cli.add_common_arguments(parser, precisions=PRECISIONS)
    args = parser.parse_args(argv)
    if args.pool == "none":
        parser.error("--pool none keeps maps (N, C, H, W), probes read rows: choose another --pool")
    if args.model_ckpt_path is None:
        if args.list_nodes or args.node or args.pool:
            parser.error("--node, --pool and --list-nodes are about a model that is read: -m CHECKPOINT")
        if args.reps_file is None or args.val_reps_file is None:
            parser.error("without --reps-file and --val-reps-file there is a model to read: -m CHECKPOINT")
        if args.model_arch is None:
            parser.error("name the architecture the representations come from: -a ARCH")
    else:
        arch, path = parse_source(args.model_ckpt_path)
        args.source = args.model_ckpt_path
        if args.model_arch is None:
            args.model_arch = models.source_name(args.source)
        elif arch is None:
            args.source = f"{args.model_arch}={path}"
        else:
            parser.error(f"-a is the architecture of a FILE, but -m {args.source} names its own")
    if args.run_name is not None:
        try:
            files.relative_path(args.run_name, "--run-name")
        except InputError as error:
            parser.error(str(error))
    pretrained_on = args.pretrain_dataset or args.dataset_name
    args.dataset, args.train_set = (dataset_of.get(name, name) for name in (args.dataset_name, pretrained_on))
    named = map(eps_of_path, filter(None, (args.model_ckpt_path, args.reps_file, args.run_name)))
    args.eps = next(filter(None, named), None)
    if args.run_name is None:
        try:
            stem = models.file_stem(args.model_arch)
        except InputError as error:
            parser.error(f"-a/--model-arch: {error}")
        model, folder = "_".join(filter(None, [stem, args.eps])), Path(dataset_name(args.dataset))
        args.run_name = str(nodes.node_folder(Path(), args.node, args.pool) / folder / model)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    if args.list_nodes:
        nodes.print_nodes(args.model_arch, probing.find_source(args).load(args.device))
        return
    parts = probing.read_parts(args)
    if args.epochs and args.num_probes:
        probing.train(args, parts)


if __name__ == "__main__":
    cli.run(main)
