"""Train or evaluate a CIFAR-10 classifier, normally or adversarially; also on the digits, or on your own pictures.

    python cifar10_training.py -m resnet18 -s ./data/cnns/cifar10/eps0/                      # standard training
    python cifar10_training.py -m resnet18 -s ./data/cnns/cifar10/eps1/ -a 1                 # adversarial, L2, eps 1
    python cifar10_training.py -m resnet18 -s ./data/cnns/cifar10/eps1/ -a 1 --resume        # go on after a stop
    python cifar10_training.py -t 0 -m resnet18 -v ./data/cnns/cifar10/eps1/resnet18.pt      # clean and robust accuracy
    torchrun --nproc-per-node 4 cifar10_training.py -m resnet50 -s ./data/cnns/cifar10/eps1/ -a 1
    python cifar10_training.py --dataset digits -m vgg11 -s runs/digits/eps1 -a 1 -b 64 -e 6 --schedule onecycle -l 2/3
    python cifar10_training.py --dataset folder:pictures -m vgg16 -s data/cnns/pictures/eps0

Writes checkpoint.pt.latest, checkpoint.pt.best, <epoch>_checkpoint.pt, log.jsonl, TensorBoard curves and args.json to
--save and, when training is complete, the best epoch as <save>/<arch>.pt (of a folder's pictures .ckpt).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from univ import cli
from univ.data import DATASETS, DatasetNames, trainable
from univ.training import flags


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of `argv`, or of the process."""
    parser = cli.Parser(description=__doc__)
    small = [name for name in trainable() if DATASETS[name].architectures != "imagenet"]
    text = "what to train and evaluate on"
    parser.add_argument("--dataset", choices=DatasetNames(small), default="cifar10", help=text)
    published = {"model": "resnet18", "batch": 512, "ckpt": 15, "lr": "0.5", "eps": "1"}
    args = flags.parse(parser, argv, data="./data/cifar10/", save=Path("data/cnns/cifar10"), **published)
    args.train_set = flags.train_set_of(parser, args, args.dataset)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = parse_args(argv)
    flags.run(args, args.train_set, recipe="cifar10")


if __name__ == "__main__":
    cli.run(main)
