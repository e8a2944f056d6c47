"""Train or evaluate a classifier on ImageNet-1k, ImageNet-100 or ImageNet-50, normally or adversarially.

    python imagenet_training.py -s ./data/cnns/imagenet/eps0/ -m resnet18                    # standard training
    python imagenet_training.py -s ./data/cnns/imagenet/eps3/ -m resnet18 -a 1               # adversarial, L2, eps 3
    python imagenet_training.py -s ./data/cnns/imagenet100/eps0/ -m resnet18 -n 100 -d ./data/imagenet/imagenet100/
    python imagenet_training.py -s ./data/cnns/imagenet/eps3/ -m resnet18 -a 1 --resume      # go on after a stop
    python imagenet_training.py -t 0 -v ./data/cnns/imagenet/eps3/resnet18.ckpt              # clean and robust accuracy
    python imagenet_training.py -d folder:pictures -s ./data/cnns/pictures/eps0/ -m resnet18
    torchrun --nproc-per-node 4 imagenet_training.py -s ./data/cnns/imagenet/eps3/ -m resnet50 -a 1
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29400 imagenet_training.py ...

Reads train.lmdb and val.lmdb in --data (made by univ/utils/folder2lmdb.py), or your own pictures. Writes
checkpoint.pt.latest, checkpoint.pt.best, <epoch>_checkpoint.pt, log.jsonl, TensorBoard curves and args.json to --save
and, when training is complete, the best epoch as <save>/<arch>.ckpt.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from univ import cli
from univ.data import is_folder
from univ.training import flags

TRAIN_SETS = {1000: "imagenet", 100: "imagenet100", 50: "imagenet50"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of `argv`, or of the process."""
    parser = cli.Parser(description=__doc__)
    text = "classes: of ImageNet-1k, or of its subset of 100 or 50 classes"
    parser.add_argument("-n", "--num", type=int, choices=sorted(TRAIN_SETS), default=1000, help=text)
    data = "./data/imagenet/ILSVRC/; with -n 100 or 50 ./data/imagenet/imagenet100/ or imagenet50/"
    published = {"model": "tiny_vit_5m", "batch": 256, "ckpt": 5, "lr": "2", "eps": "3"}
    args = flags.parse(parser, argv, data=data, save=Path("data/cnns/imagenet"), **published)
    args.train_set = flags.train_set_of(parser, args, TRAIN_SETS[args.num])
    if is_folder(args.train_set) and args.num != parser.get_default("num"):
        parser.error(f"-n chooses among ImageNet's classes, {args.train_set} has its own: give one of them")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = parse_args(argv)
    flags.run(args, args.train_set, recipe="imagenet")


if __name__ == "__main__":
    cli.run(main)
