"""Adversarial training, steps per second: ours beside `robustness.attacker.AttackerModel`.

Both train the same network from the same weights on one batch: L2 PGD with 3 steps and use_best, then a step of SGD
with momentum on the worst images. The peer runs as its own training loop does, in PyTorch's default precision; ours as
the training scripts do. The training losses of the last step show that both have learnt the same.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from univ import cli
from univ.attacks import Attack
from univ.data import DATASETS
from univ.data.images import TensorImages
from univ.data.loaders import stream
from univ.models import Classifier, build_model
from univ.models.precision import PRECISIONS, training_arithmetic
from univ.runs import Distributed
from univ.training import Data, Recipe, Saving, Trainer

from .common import alternate, cuda_only_on_cuda, environment_line, markdown_table, peer

ON_CPU = ("digits:vgg11:64", "digits:resnet10:64", "digits:densenet17:64", "digits:resnext14_4x32d:64")
ON_CPU += ("cifar10:resnet18:32", "imagenet:resnet18:8")
ON_CUDA = ("cifar10:resnet18:512", "cifar10:vgg16:512", "imagenet:resnet50:256", "imagenet:densenet161:128")
MOMENTUM, WEIGHT_DECAY, LEARNING_RATE = 0.9, 5e-4, 0.01


Step = Callable[[Tensor, Tensor], Tensor]
"""Takes one step of training on images and labels; returns the loss."""


def peer_step(model: Classifier, attack: Attack, device: torch.device) -> Step:
    """A copy of a classifier, trained by the `robustness` package as in its train._model_loop."""
    theirs = peer(copy.deepcopy(model)).to(device).train()
    optimizer = torch.optim.SGD(theirs.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    settings = {"eps": attack.eps, "step_size": attack.step_size, "iterations": attack.steps}

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with cuda_only_on_cuda(device):
            logits, _ = theirs(images, target=labels, make_adv=True, constraint="2", use_best=True, **settings)
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_step(model: Classifier, attack: Attack, images: TensorImages, args: argparse.Namespace) -> Step:
    """A classifier trained by `univ.training`, on a batch that stays the same."""
    recipe = Recipe(
        epochs=1,
        batch_size=len(images),
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
        attack=attack,
        precision=args.precision or ("bf16" if args.device.type == "cuda" else "fp32"),
    )
    saving = Saving(Path(), tensorboard=False)  # nothing is written: only steps are taken
    process = Distributed(args.device)
    trainer = Trainer(model, Data(images, images), recipe, saving, process, compile=args.compile, quiet=True)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        before = trainer.totals.sums[0].clone()
        with training_arithmetic(recipe.precision, args.device):
            trainer.train_step(1, images, labels)
        return (trainer.totals.sums[0] - before) / len(images)

    return step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "SET:ARCH:BATCH ... (default: small networks on the CPU, the study's on CUDA)"
    parser.add_argument("--networks", nargs="+", metavar="NETWORK", help=text)
    parser.add_argument("--repeats", type=cli.positive_int, default=15, help="timed steps of each")
    text = "of ours (default: what the training scripts take, fp32 on the CPU, bf16 on CUDA)"
    parser.add_argument("--precision", choices=PRECISIONS, help=text)
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")


def run(args: argparse.Namespace) -> None:
    device = args.device
    networks = args.networks or (ON_CUDA if device.type == "cuda" else ON_CPU)
    rows = []
    for network in networks:
        train_set, _, rest = network.partition(":")
        arch, _, batch = rest.rpartition(":")  # the name of an architecture may have a colon, as timm:convnext_tiny
        rows.append(_row(train_set, arch, int(batch), args))
    print(f"{environment_line(device)}; medians of {args.repeats} steps, ours and the peer's in turn")
    headers = ("data", "network", "batch", "robustness, steps/s", "ours, steps/s", "ratio", "last loss: peer", "ours")
    print(markdown_table(headers, rows))


def _row(train_set: str, arch: str, batch: int, args: argparse.Namespace) -> tuple[object, ...]:
    dataset, device = DATASETS[train_set], args.device
    model = build_model(arch, train_set, seed=args.seed)
    size = model.image_size
    generator = stream("benchmark", args.seed)
    images = torch.rand(batch, 3, size, size, generator=generator)
    labels = torch.randint(dataset.num_classes, (batch,), generator=generator)
    eps = 3.0 if size > 32 else 1.0
    attack = Attack("l2", eps=eps, step_size=2 * eps / 3, steps=3)
    ours = our_step(model, attack, TensorImages(images, labels, name="benchmark"), args)
    steps = {"peer": peer_step(model, attack, device), "ours": ours}
    images, labels = images.to(device), labels.to(device)
    losses: dict[str, Tensor] = {}

    def step(name: str) -> None:
        losses[name] = steps[name](images, labels)

    seconds = alternate({name: partial(step, name) for name in steps}, repeats=args.repeats, device=device)
    ratio = seconds["peer"] / seconds["ours"]
    rates = [f"{1 / seconds[name]:.2f}" for name in ("peer", "ours")]
    return train_set, arch, batch, *rates, f"{ratio:.2f}", *(f"{losses[name].item():.4f}" for name in ("peer", "ours"))
